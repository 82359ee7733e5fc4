"""One global cut through the spectra of all matrices: which directions are worth their parameters.

Matrix k has learned an update Δ_k with singular values σ_k1 ≥ σ_k2 ≥ ...; one direction of it costs c_k parameters. By Eckart
and Young (1936) the best approximation of Δ_k in r_k directions loses Σ_{i>r_k} σ_ki², so keeping the directions with the
largest σ_ki²/c_k keeps as much of Σ_k ‖Δ_k‖_F² as the budget can hold, to within the direction at the cut.

This file is pure: numbers in, integers out, no torch. Ties go to the name that sorts first, so the ranks do not depend on the
order of a dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glora.config import SettingError

Spectra = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Cut:
    """Ranks by one global cut, and what they keep.

    Attributes:
        ranks: The rank of each matrix, in the order of the spectra.
        kept: Share of the energy Σ σ² that the kept directions hold; 1 where nothing was learned.
    """

    ranks: dict[str, int]
    kept: float


def cut_spectra(
    spectra: Spectra,
    *,
    budget: float | None = None,
    energy: float | None = None,
    costs: Mapping[str, int] | None = None,
    min_ranks: Mapping[str, int] | None = None,
    max_ranks: Mapping[str, int] | None = None,
) -> Cut:
    """Keep the directions with the largest σ²/cost until a budget is spent, or until a share of the energy is kept.

    Args:
        spectra: Singular values of each matrix's update, by name, in descending order.
        budget: Σ r_k·c_k may not exceed it. Where the next direction does not fit, cheaper ones behind it still may.
        energy: Share of Σ σ² to keep, above 0 and at most 1. Give this or `budget`.
        costs: Parameters of one direction of each matrix, d_in + d_out. Default: 1, a budget in ranks.
        min_ranks: Directions that each matrix keeps in any case, by name. Default: 0.
        max_ranks: Most directions that a matrix keeps, by name. Default: all it has.

    Returns:
        The cut. Directions with σ = 0 hold nothing and are kept only where `min_ranks` asks for them.

    Raises:
        ValueError: a singular value is not finite, or the budget does not pay for `min_ranks`.
    """
    for name, values in spectra.items():
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"the singular values of {name!r} hold inf or NaN; resume from an earlier checkpoint")
    price = costs or dict.fromkeys(spectra, 1)
    low, high = min_ranks or {}, max_ranks or {}
    ranks = {name: low.get(name, 0) for name in spectra}
    left = math.inf if budget is None else budget - sum(price[name] * rank for name, rank in ranks.items())
    if left < 0:
        raise _short(-left)
    total = _energy(spectra, {name: len(values) for name, values in spectra.items()})
    held = _energy(spectra, ranks)
    by_worth = sorted(
        (-(value**2) / price[name], name, place, value)
        for name, values in spectra.items()
        for place, value in enumerate(values[: high.get(name, len(values))])
        if place >= low.get(name, 0) and value > 0
    )
    closed: set[str] = set()  # a matrix whose next direction did not fit: none behind it may jump the queue
    for _, name, _, value in by_worth:
        if energy is not None and held >= energy * total * (1 - 1e-12):
            break
        if name in closed:
            continue
        if price[name] > left:
            closed.add(name)
            continue
        ranks[name] += 1
        left -= price[name]
        held += value**2
    return Cut(ranks, kept_energy(spectra, ranks))


def cut_uniformly(
    spectra: Spectra,
    *,
    budget: float | None = None,
    energy: float | None = None,
    costs: Mapping[str, int],
    min_ranks: Mapping[str, int],
    max_ranks: Mapping[str, int],
) -> Cut:
    """Give every matrix one rank, within its bounds: the largest in the budget, or the smallest that keeps the energy."""
    best = None
    for rank in range(max(max_ranks.values()) + 1):
        ranks = {name: max(min_ranks[name], min(rank, max_ranks[name])) for name in spectra}
        spent = sum(costs[name] * ranks[name] for name in ranks)
        if budget is not None and spent > budget * (1 + 1e-12):
            if best is None:
                raise _short(spent - budget)
            break
        best = Cut(ranks, kept_energy(spectra, ranks))
        if energy is not None and best.kept >= energy * (1 - 1e-12):
            break
    assert best is not None
    return best


def _short(missing: float) -> SettingError:
    return SettingError(
        f"the budget is {missing:,g} short of {{min_rank}} in every matrix (at least 1 with DoRA, lora_bias and experts); "
        "lower {min_rank}, or ask for a larger {average_rank}"
    )


def kept_energy(spectra: Spectra, ranks: Mapping[str, int]) -> float:
    """Return the share of the energy Σ σ² in the leading r_k directions of each matrix; 1 where nothing was learned."""
    total = _energy(spectra, {name: len(values) for name, values in spectra.items()})
    return _energy(spectra, ranks) / total if total else 1.0


def _energy(spectra: Spectra, ranks: Mapping[str, int]) -> float:
    return math.fsum(value**2 for name, values in spectra.items() for value in values[: ranks[name]])
