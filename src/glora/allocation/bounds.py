"""Ranks under the bounds of an adapter: the user's, those of the shapes, and those of each kind of layer.

The budget is the cost of R_total ranks spread evenly over all matrices, those without an adapter included: so it is the same at
every reallocation.
"""

from __future__ import annotations

from collections.abc import Mapping

from glora.allocation.cut import Spectra, cut_spectra, cut_uniformly
from glora.allocation.shares import allocate_ranks
from glora.config import RankAllocationConfig
from glora.lora.adapter import RankedAdapter
from glora.messages import did_you_mean, pluralize


def allocate_within_bounds(
    adapter: RankedAdapter, config: RankAllocationConfig, total_rank: int, scores: Mapping[str, float]
) -> dict[str, int]:
    """Return the ranks of all matrices of an adapter in proportion to scores.

    Args:
        adapter: The adapter as it is. A matrix without an adapter has no score and stays without.
        config: Its `budget`, `min_rank` and `max_rank` are used.
        total_rank: R_total.
        scores: s_k, or anything in proportion to it, of each matrix that has an adapter.
    """
    low, high = rank_bounds(adapter, config)
    room = sum(min(matrix.shape) for matrix in adapter.present)
    if config.budget_unit == "rank" and total_rank > room:
        raise ValueError(
            f"total_rank={total_rank} is more than {pluralize(len(low), 'matrix')} can hold: no rank exceeds "
            f"min(d_in, d_out), and those add up to {room}; lower total_rank to at most {room}"
        )
    ranks = allocate_ranks(
        {name: scores[name] if matrix.rank else 0.0 for name, matrix in adapter.matrices.items()},
        total_rank,
        min_rank=low,
        max_rank=high,
        costs=adapter.costs if config.budget_unit == "parameters" else None,
    )
    return _any_rank(ranks, config, f"total_rank={total_rank}")


def cut_within_bounds(
    adapter: RankedAdapter,
    config: RankAllocationConfig,
    spectra: Spectra,
    *,
    total_rank: float | None = None,
    energy: float | None = None,
) -> dict[str, int]:
    """Return the ranks of all matrices of an adapter by a cut through what they have learned; none grows.

    Args:
        adapter: The adapter as it is.
        config: Its `rule`, `budget`, `min_rank` and `max_rank` are used.
        spectra: The singular values of each matrix that has an adapter.
        total_rank: The budget in ranks; it may be a fraction. Give this or `energy`.
        energy: Share of Σ σ² to keep.
    """
    low, high = rank_bounds(adapter, config)
    if crossed := next((name for name in low if low[name] > high[name]), None):
        raise ValueError(
            f"min_rank={low[crossed]} is above max_rank={high[crossed]} for {crossed!r}; lower min_rank or raise max_rank"
        )
    high = {name: min(high[name], matrix.rank) for name, matrix in adapter.matrices.items()}
    if narrow := next((name for name in low if low[name] > high[name]), None):
        raise ValueError(
            f"min_rank={low[narrow]} is above the rank {adapter.ranks[narrow]} of {narrow!r}, and rule={config.rule!r} only "
            "cuts; lower it, or start with a larger r"
        )
    costs = adapter.costs if config.budget_unit == "parameters" else dict.fromkeys(high, 1)
    budget = None if total_rank is None else total_rank * sum(costs.values()) / len(costs)
    full = {name: spectra.get(name, ()) for name in high}
    rule = cut_uniformly if config.rule == "uniform" else cut_spectra
    ranks = rule(full, budget=budget, energy=energy, costs=costs, min_ranks=low, max_ranks=high).ranks
    return _any_rank(ranks, config, f"energy={energy}" if total_rank is None else f"total_rank={total_rank:g}")


def rank_bounds(adapter: RankedAdapter, config: RankAllocationConfig) -> tuple[dict[str, int], dict[str, int]]:
    """Return the smallest and the largest rank of each matrix; 0 and 0 where it has no adapter."""
    low, high = _by_name(config.min_rank), _by_name(config.max_rank)
    for bounds, what in ((low, "min_rank"), (high, "max_rank")):
        if unknown := sorted(set(bounds) - set(adapter.matrices) - {""}):
            raise ValueError(
                f"{what} names {unknown[0]!r}, which is not among the {pluralize(len(adapter.matrices), 'matrix')}"
                f"{did_you_mean(unknown[0], adapter.matrices) or f', such as {next(iter(adapter.matrices))!r}'}"
            )
    least, most = dict.fromkeys(adapter.matrices, 0), dict.fromkeys(adapter.matrices, 0)
    for matrix in adapter.present:
        name, full, (smallest, why) = matrix.name, min(matrix.shape), matrix.min_supported_rank
        least[name] = max(low.get(name, low.get("", 0)), smallest)
        most[name] = min(high.get(name, high.get("", full)), full)
        if smallest > most[name] and least[name] == smallest:
            raise ValueError(
                f"max_rank={most[name]} for {name!r} is below {smallest}, and {why} does not allow less; raise it to "
                f"{smallest}, or leave the matrix out of target_modules"
            )
    return least, most


def _any_rank(ranks: dict[str, int], config: RankAllocationConfig, amount: str) -> dict[str, int]:
    if not any(ranks.values()):
        raise ValueError(
            f"{amount} with budget={config.budget_unit!r} and these bounds pays for no rank of any matrix; raise "
            "it, or max_rank where it is 0"
        )
    return ranks


def _by_name(bound: int | Mapping[str, int] | None) -> Mapping[str, int]:
    """Return a bound by name; one for all matrices is under the empty name."""
    if bound is None:
        return {}
    return bound if isinstance(bound, Mapping) else {"": bound}
