"""Scores and a budget to integer ranks.

This file is pure: dictionaries in, a dictionary out, no torch. Arithmetic is exact (`fractions.Fraction`), so the ranks
depend on neither the order of the dictionary nor the machine, and every process of a distributed run computes the same.

The share of matrix k is its score; with s_k = g_k / Σ_j g_j the published rule is r_k = round(R_total · s_k) with
Σ r_k = R_total. Rounding is by largest remainder (Hamilton's method of apportionment), ties go to the name that sorts
first. Bounds are kept by water-filling: r_k = clip(λ·s_k, min_k, max_k), with the one λ that spends the budget, so what
a cap leaves over is shared out again in proportion to the scores.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from fractions import Fraction

from glora.config import is_int, plain_number
from glora.messages import did_you_mean, pluralize

Bound = int | Mapping[str, int] | None


def allocate_ranks(
    scores: Mapping[str, float],
    total_rank: int,
    *,
    min_rank: int | Mapping[str, int] = 0,
    max_rank: Bound = None,
    costs: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Share a rank budget among matrices in proportion to their scores.

    Args:
        scores: Importance of each matrix, by name: finite, not negative, not all zero. Only ratios matter.
        total_rank: R_total. Without `costs`, Σ r_k = R_total exactly.
        min_rank: Smallest rank of every matrix, or of each by name (0 where a name is missing).
        max_rank: Largest rank of every matrix, or of each by name (no bound where a name is missing).
            Give min(d_in, d_out) for each matrix: a larger rank cannot be used.
        costs: Parameters of one rank in each matrix, d_in + d_out. With it the budget is counted in parameters,
            P = R_total · mean(costs), what R_total ranks would cost spread evenly: Σ r_k · cost_k never exceeds P, and
            no further rank of any matrix that has a score and is below its bound would fit. A matrix of score 0 gets its
            min_rank.

    Returns:
        The rank of each matrix, in the order of `scores`.

    Raises:
        ValueError: a score is negative, infinite or NaN, or all are zero; a bound names an unknown matrix, or min_rank
            exceeds max_rank; the budget is too small for the minima or too large for the maxima.

    Example:
        >>> allocate_ranks({"query": 3.0, "key": 1.0}, 8)
        {'query': 6, 'key': 2}
    """
    _check_scores(scores)
    if not is_int(total_rank := plain_number(total_rank), 1):
        raise ValueError(f"total_rank={total_rank!r} must be an integer of at least 1")
    names = sorted(scores)
    price = _prices(costs, names)
    budget = Fraction(total_rank) if costs is None else Fraction(total_rank * sum(price.values()), len(names))
    low = dict.fromkeys(names, 0) | _bounds(min_rank, names, "min_rank")
    bounded = _bounds(max_rank, names, "max_rank")
    # No matrix can spend more than the whole budget, so that is a bound where the user gave none.
    high = {name: math.floor(budget / price[name]) for name in names} | bounded

    def spent(ranks: Mapping[str, int]) -> int:
        return sum(ranks[name] * price[name] for name in names)

    def in_ranks(parameters: int) -> Fraction:
        return Fraction(parameters * len(names), sum(price.values()))

    matrices = pluralize(len(names), "matrix")
    if spent(low) > budget:
        raise ValueError(
            f"total_rank={total_rank} cannot give {matrices} {'its' if len(names) == 1 else 'their'} "
            f"min_rank{_of(min_rank, ' of ')}; raise total_rank to at least {math.ceil(in_ranks(spent(low)))} or lower min_rank"
        )
    if crossed := next((name for name in names if low[name] > high[name]), None):
        raise ValueError(
            f"min_rank={low[crossed]} is above max_rank={high[crossed]} for {crossed!r}; lower min_rank or raise max_rank"
        )
    if len(bounded) == len(names) and spent(high) < budget:
        raise ValueError(
            f"total_rank={total_rank} is more than {matrices} can hold with max_rank{_of(max_rank, '=')}; "
            f"lower total_rank to at most {math.floor(in_ranks(spent(high)))} or raise max_rank"
        )
    if costs is not None:  # a remainder of the budget does not justify a rank without a score
        high = {name: high[name] if scores[name] else low[name] for name in names}
    share = _water_fill({name: Fraction(float(scores[name])) for name in names}, price, low, high, budget)
    ranks = _round(share, price, high, budget)
    return {name: ranks[name] for name in scores}


def _check_scores(scores: Mapping[str, float]) -> None:
    if not scores:
        raise ValueError("scores is empty: there is no matrix to give a rank to")
    if odd := [name for name, value in scores.items() if not _is_number(value)]:
        raise ValueError(f"scores[{odd[0]!r}]={scores[odd[0]]!r} must be a number")
    if bad := {name: value for name, value in scores.items() if not math.isfinite(value) or value < 0}:
        name, value = next(iter(bad.items()))
        raise ValueError(
            f"scores must be finite and not negative; {len(bad)} of {len(scores)} {'is' if len(bad) == 1 else 'are'} not, "
            f"the first is {name!r}: {value}. A gradient overflowed or a norm was computed in too small a dtype"
        )
    if not any(scores.values()):
        raise ValueError(
            f"none of {pluralize(len(scores), 'score')} is above zero; check that the adapter receives gradients, or keep the "
            "uniform ranks"
        )


def _is_number(value: object) -> bool:
    """Return whether a score is a number; a tensor with one element is."""
    return not isinstance(value, str | bytes | bool) and hasattr(value, "__float__")


def _prices(costs: Mapping[str, int] | None, names: list[str]) -> dict[str, int]:
    if costs is None:
        return dict.fromkeys(names, 1)
    if missing := [name for name in names if name not in costs]:
        raise ValueError(
            f"costs has no entry for {missing[0]!r} ({len(missing)} missing); give d_in + d_out for each name"
        )
    prices = {name: plain_number(costs[name]) for name in names}
    if bad := [name for name in names if not is_int(prices[name], 1)]:
        raise ValueError(f"costs[{bad[0]!r}]={costs[bad[0]]!r} must be an integer of at least 1: it is d_in + d_out")
    return prices


def _bounds(bound: Bound, names: list[str], what: str) -> dict[str, int]:
    """Return a bound of each matrix that has one."""
    given = plain_number(bound if isinstance(bound, Mapping) else dict.fromkeys(names, bound))
    if unknown := sorted(set(given) - set(names)):
        near = did_you_mean(unknown[0], names)
        raise ValueError(f"{what} names {unknown[0]!r}, which is not among the {pluralize(len(names), 'score')}{near}")
    bounds = {name: value for name, value in given.items() if value is not None}
    if bad := next((name for name, value in bounds.items() if not is_int(value, 0)), None):
        raise ValueError(f"{what} for {bad!r} is {bounds[bad]!r}; it must be an integer of at least 0")
    return bounds


def _of(bound: Bound, separator: str) -> str:
    values = set(bound.values()) if isinstance(bound, Mapping) else {bound}
    return f"{separator}{values.pop()}" if len(values) == 1 else " given by name"


def _water_fill(
    score: dict[str, Fraction],
    price: dict[str, int],
    low: dict[str, int],
    high: dict[str, int],
    budget: Fraction,
) -> dict[str, Fraction]:
    """Return the shares clip(λ·s_k, low_k, high_k), with the λ for which Σ price_k · share_k = budget."""

    def at(level: Fraction) -> dict[str, Fraction]:
        return {k: min(max(level * s, Fraction(low[k])), Fraction(high[k])) for k, s in score.items()}

    def spent(level: Fraction) -> Fraction:
        return sum((price[k] * share for k, share in at(level).items()), Fraction(0))

    scored = [k for k, s in score.items() if s > 0]
    # `spent` is piecewise linear in λ and bends only where a matrix meets one of its bounds.
    bends = sorted({Fraction(bound) / score[k] for k in scored for bound in (low[k], high[k])})
    first_enough = bisect_left(bends, budget, key=spent)
    if first_enough == len(bends):
        # Every matrix with a score is full: those without one share the rest evenly.
        unscored = {k: Fraction(1) for k, s in score.items() if s == 0}
        shares = {k: Fraction(high[k]) for k in scored}
        rest = budget - sum((price[k] * high[k] for k in scored), Fraction(0))
        return shares | (_water_fill(unscored, price, low, high, rest) if unscored else {})
    if first_enough == 0:
        return at(bends[0])
    start, end = bends[first_enough - 1], bends[first_enough]
    spent_start, spent_end = spent(start), spent(end)
    return at(start + (budget - spent_start) * (end - start) / (spent_end - spent_start))


def _round(share: dict[str, Fraction], price: dict[str, int], high: dict[str, int], budget: Fraction) -> dict[str, int]:
    """Take the floors, then give one more rank at a time to the largest remainder that the budget still pays for."""
    ranks = {k: math.floor(value) for k, value in share.items()}
    left = budget - sum(price[k] * r for k, r in ranks.items())
    while True:
        affordable = [k for k in share if ranks[k] < high[k] and price[k] <= left]
        if not affordable:
            return ranks
        # The inner pass serves everybody once before anybody is served twice.
        for k in sorted(affordable, key=lambda k: (ranks[k] - share[k], k)):
            if price[k] <= left:
                ranks[k] += 1
                left -= price[k]
