"""Ranks under the bounds of an adapter: the user's, those of the shapes, and those of each kind of layer."""

from __future__ import annotations

from collections.abc import Mapping

from glora.allocation.shares import allocate_ranks
from glora.config import RankAllocationConfig
from glora.lora.adapter import RankedAdapter
from glora.lora.matrix import LoraMatrix
from glora.messages import did_you_mean, pluralize


def allocate_within_bounds(
    adapter: RankedAdapter, config: RankAllocationConfig, total_rank: int, scores: Mapping[str, float]
) -> dict[str, int]:
    """Return the ranks of all matrices of an adapter.

    A matrix without an adapter has no score and stays without, but counts for the cost of R_total ranks spread evenly: so
    the budget is the same at every reallocation.

    Args:
        adapter: The adapter as it is.
        config: Its `budget`, `min_rank` and `max_rank` are used.
        total_rank: R_total.
        scores: s_k, or anything in proportion to it, of each matrix that has an adapter.

    Raises:
        ValueError: a bound names no matrix, or the bounds, the kinds of layers, the shapes and the budget do not go together.
    """
    low, high = _by_name(config.min_rank), _by_name(config.max_rank)
    for bounds, what in ((low, "min_rank"), (high, "max_rank")):
        if unknown := sorted(set(bounds) - set(adapter.matrices) - {""}):
            raise ValueError(
                f"{what} names {unknown[0]!r}, which is not among the {pluralize(len(adapter.matrices), 'matrix')}"
                f"{did_you_mean(unknown[0], adapter.matrices)}"
            )

    def bounds_of(matrix: LoraMatrix) -> tuple[float, int, int]:
        name = matrix.name
        if matrix.rank == 0:
            return 0.0, 0, 0
        full, smallest = min(matrix.shape), matrix.min_supported_rank[0]
        least = max(low.get(name, low.get("", 0)), smallest)
        return scores[name], least, min(high.get(name, high.get("", full)), full)

    scored = {name: bounds_of(matrix) for name, matrix in adapter.matrices.items()}
    for name, (_, least, most) in scored.items():
        smallest, why = adapter.matrices[name].min_supported_rank
        if smallest > most and least == smallest:
            raise ValueError(
                f"max_rank={most} for {name!r} is below {smallest}, and {why} does not allow less; raise it to {smallest}, "
                "or leave the matrix out of target_modules"
            )
    room = sum(min(matrix.shape) for matrix in adapter.present)
    if config.budget == "rank" and total_rank > room:
        raise ValueError(
            f"total_rank={total_rank} is more than {pluralize(len(scored), 'matrix')} can hold: no rank exceeds "
            f"min(d_in, d_out), and those add up to {room}; lower total_rank to at most {room}"
        )
    costs = {name: matrix.cost for name, matrix in adapter.matrices.items()}
    ranks = allocate_ranks(
        {name: score for name, (score, _, _) in scored.items()},
        total_rank,
        min_rank={name: least for name, (_, least, _) in scored.items()},
        max_rank={name: most for name, (_, _, most) in scored.items()},
        costs=costs if config.budget == "parameters" else None,
    )
    if not any(ranks.values()):
        raise ValueError(
            f"total_rank={total_rank} with budget={config.budget!r} and these bounds pays for no rank of any matrix; raise "
            "total_rank, or max_rank where it is 0"
        )
    return ranks


def _by_name(bound: int | Mapping[str, int] | None) -> Mapping[str, int]:
    """Return a bound by name; one for all matrices is under the empty name."""
    if bound is None:
        return {}
    return bound if isinstance(bound, Mapping) else {"": bound}
