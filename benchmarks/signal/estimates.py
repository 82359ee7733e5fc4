"""Each way to read ‖G‖, made from what a warm-up recorded, and how much of the budget it puts elsewhere.

Every estimate is ‖∂L/∂B‖/s times a ratio ‖G‖/‖G·Aᵀ‖ that is assumed or measured. Between two measurements the last ratio is
used, and before the first one √d_in/‖A‖.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from benchmarks.signal.warm_up import COLUMNS, WarmUp

from glora import allocate_ranks

DRAWS = 8
"""At most this number of independent sketches of each warm-up is evaluated."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One way.

    Attributes:
        what: "exact", "raw" (‖∂L/∂B‖), "expected" (√d_in/‖A‖ for the ratio), "ratio" (measured exactly) or "sketch".
        k: Columns of Ω, for a sketch.
        m: Steps from one measurement to the next.
        last: Number of last steps in which it is measured; None: all.
    """

    what: str
    k: int | None = None
    m: int = 1
    last: int | None = None


def norms(seen: WarmUp, estimate: Estimate, steps: int, beta: float | None, draw: int = 0) -> np.ndarray:
    """Return g_k after this number of steps, up to a common factor, shape (matrices,); beta None is the plain mean."""
    weights = decay(steps, beta)
    clipping = seen.clipping[:steps, None]
    by_A = np.sqrt(seen.by_A[:steps]) * clipping
    if estimate.what == "exact":
        return weights @ (np.sqrt(seen.exact[:steps]) * clipping)
    if estimate.what == "raw":
        return weights @ by_A
    expected = np.sqrt(np.array(seen.shapes)[:, 1] / seen.of_A[:steps])
    if estimate.what == "expected":
        return weights @ (by_A * expected)
    squares = seen.exact if estimate.what == "ratio" else _sketched(seen, estimate, draw)
    ratios = np.sqrt(squares[:steps] / seen.by_A[:steps])
    number = np.arange(steps)
    measured = (number % estimate.m == 0) & (number >= steps - (estimate.last or steps))
    last = np.maximum.accumulate(np.where(measured, number, -1))
    return weights @ (by_A * np.where(last[:, None] < 0, expected, ratios[last]))


def decay(steps: int, beta: float | None) -> np.ndarray:
    """Return the weight of each step in the average after the last."""
    return np.full(steps, 1 / steps) if beta is None else (1 - beta) * beta ** np.arange(steps - 1, -1, -1.0)


def draws(estimate: Estimate) -> int:
    """Return the number of independent sketches."""
    return 1 if estimate.k is None else min(DRAWS, COLUMNS // estimate.k)


def _sketched(seen: WarmUp, estimate: Estimate, draw: int) -> np.ndarray:
    assert estimate.k is not None
    squares: np.ndarray = seen.columns[:, :, draw * estimate.k : (draw + 1) * estimate.k].mean(-1)
    return squares


def ranks(names: Sequence[str], scores: np.ndarray, total_rank: int) -> dict[str, int]:
    """Return the ranks that scores give under the rank budget."""
    return allocate_ranks(dict(zip(names, scores.tolist())), total_rank)


def misplaced(one: dict[str, int], exact: dict[str, int]) -> float:
    """Return ½·Σ|r_k - r*_k| / R_total: the share of the budget that is elsewhere than where the exact norm puts it."""
    return sum(abs(one[name] - exact[name]) for name in exact) / 2 / sum(exact.values())


def explained(seen: WarmUp, steps: int) -> dict[str, float]:
    """Return the R² over matrices of log g_k, by the exact norm at β = 0.9, on the logarithms of ‖X_k‖, ‖dY_k‖ and both."""
    weights = decay(steps, 0.9)
    G, X, dY = (np.log(weights @ np.sqrt(of[:steps])) for of in (seen.exact, seen.of_input, seen.of_output))

    def r2(*by: np.ndarray) -> float:
        columns = np.stack([np.ones_like(G), *by], 1)
        rest = G - columns @ np.linalg.lstsq(columns, G, rcond=None)[0]
        return round(float(1 - (rest**2).sum() / ((G - G.mean()) ** 2).sum()), 3)

    return {"input": r2(X), "output": r2(dY), "both": r2(X, dY)}


def estimates() -> Iterator[Estimate]:
    """Yield those that the report compares."""
    yield Estimate("expected")
    yield Estimate("raw")
    for m in (1, 16):
        yield Estimate("ratio", None, m)
    for k in (1, 2, 4, 8, 16):
        yield Estimate("sketch", k)
    for k in (4, 8, 16):
        yield Estimate("sketch", k, 1, 30)
    yield Estimate("sketch", 8, 1, 20)
    yield Estimate("sketch", 8, 2, 30)
    yield Estimate("sketch", 8, 16)
