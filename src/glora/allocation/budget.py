"""The budget: R_total, what each of several cuts may keep, and the check of both before the warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping

from glora.allocation.bounds import allocate_within_bounds, cut_within_bounds, rank_bounds
from glora.config import RankAllocationConfig
from glora.lora.adapter import RankedAdapter


def total_rank_of(config: RankAllocationConfig, adapter: RankedAdapter) -> float | None:
    """Return R_total: `total_rank`, average_rank·n, or the ranks that the adapter began with; None with `energy`.

    A cut may have a fraction of a rank, which under the parameter budget pays for a cheap direction.
    """
    if config.energy is not None:
        return None
    if config.average_rank is not None:
        total = round(config.average_rank * len(adapter.matrices), 9)
        return total if config.cuts and not float(total).is_integer() else max(1, round(total))
    return config.total_rank if config.total_rank is not None else sum(adapter.initial_ranks.values())


def budget_of_cut(config: RankAllocationConfig, adapter: RankedAdapter, cut: int) -> dict[str, float]:
    """Return what a cut may keep, as arguments of `cut_within_bounds`. Several cuts come down in equal ratios.

    Args:
        config: The configuration.
        adapter: The adapter, which knows the ranks that it began with.
        cut: The number of the cut, from 1 to `max_reallocations`.
    """
    cuts, total_rank = config.max_reallocations or 1, total_rank_of(config, adapter)
    if total_rank is None:
        assert config.energy is not None
        return {"energy": config.energy ** (1 / cuts)}
    start = _size(config, adapter, adapter.initial_ranks)
    return {"total_rank": total_rank if cut >= cuts else start * (total_rank / start) ** (cut / cuts)}


def check_budget(config: RankAllocationConfig, adapter: RankedAdapter) -> None:
    """Check, before the warm-up, that the bounds allow the budget."""
    total_rank, matrices = total_rank_of(config, adapter), len(adapter.matrices)
    if not config.cuts:
        assert total_rank is not None
        allocate_within_bounds(adapter, config, int(total_rank), dict.fromkeys(adapter.matrices, 1.0))
        return
    if config.rule == "uniform" and total_rank is not None and total_rank % matrices:
        raise ValueError(
            f"total_rank={total_rank:g} is not a multiple of the {matrices} matrices, and rule='uniform' has one rank for "
            "all; use average_rank"
        )
    room = _size(config, adapter, rank_bounds(adapter, config)[1])
    if total_rank is not None and len(adapter.present) == matrices and total_rank > room * (1 + 1e-12):
        raise ValueError(
            f"the matrices hold {room:g} ranks at most under max_rank and their shapes, and {total_rank:g} are asked for; "
            "ask for less, or raise max_rank"
        )
    equal = {matrix.name: [1.0] * matrix.rank for matrix in adapter.present}
    cut_within_bounds(adapter, config, equal, total_rank=total_rank, energy=config.energy)


def check_start(config: RankAllocationConfig, adapter: RankedAdapter) -> None:
    """Check, where training begins, that a cut would leave less than the adapter has."""
    total_rank = total_rank_of(config, adapter)
    if config.cuts and total_rank is not None and total_rank >= (size := _size(config, adapter, adapter.ranks)):
        rank, start = max(adapter.ranks.values()), 4 * math.ceil(total_rank / len(adapter.matrices))
        start = min(start, max(min(matrix.shape) for matrix in adapter.present))
        asked = f"average_rank={config.average_rank:g}" if config.average_rank else f"total_rank={config.total_rank}"
        raise ValueError(
            f"rule={config.rule!r} cuts an adapter that starts wider than it ends; this one starts at r={rank}, {size:g} "
            f"ranks, and {asked} asks for {total_rank:,g}. Lower it, or start with LoraConfig(r={start}) and lora_alpha in "
            "proportion"
        )


def _size(config: RankAllocationConfig, adapter: RankedAdapter, ranks: Mapping[str, int]) -> float:
    """Return Σ r_k, under the parameter budget with each rank weighted by its cost over the average cost."""
    costs = adapter.costs if config.budget_unit == "parameters" else dict.fromkeys(adapter.matrices, 1)
    return sum(ranks[name] * cost for name, cost in costs.items()) * len(costs) / sum(costs.values())
