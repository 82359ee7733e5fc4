"""GLoRA, and its control: the same ranks dealt out at random."""

from __future__ import annotations

import math
from collections.abc import Mapping

from glora.allocation.shares import allocate_ranks
from glora.config import RankAllocationConfig
from glora.experiments.config import ALLOCATION_SETTINGS, RunConfig
from glora.experiments.methods.base import BOTH, Method, Schedule
from glora.messages import pluralize

_APPLIED = "glora.experiments.methods.applied.glora:"


def average_rank(allocation: RankAllocationConfig, matrices: int, *, default: int) -> float:
    """Return r̄, the average rank that an allocation gives; the default where it is not said."""
    if allocation.total_rank is not None:
        return allocation.total_rank / matrices
    return allocation.average_rank or default


def start_rank(average: float, factor: float) -> int:
    """Return the rank at which an adapter starts that will be cut, at least one above the average."""
    return max(math.ceil(factor * average), math.floor(average) + 1)


def unsupported_bounds(config: RunConfig) -> list[str]:
    """Return bounds on the ranks that no model could meet."""
    low, high, allocation = config.setting("min_rank"), config.setting("max_rank"), config.allocation
    if high is not None and low > high:
        return [f"min_rank={low} is above max_rank={high}; lower min_rank or raise max_rank"]
    if allocation.total_rank is not None or allocation.energy is not None:
        return []  # whether it fits the bounds depends on the number of matrices, or on what is learned
    average = average_rank(allocation, 1, default=config.rank)
    if low > average:
        return [f"min_rank={low} is more than the budget, rank={average:g} on average; lower it or give a total_rank"]
    if high is not None and high < average:
        return [f"max_rank={high} cannot spend the budget, rank={average:g} on average; raise it or give a total_rank"]
    return []


def unsupported_budget(config: RunConfig, limits: Mapping[str, int]) -> list[str]:
    """Return an error if the matrices cannot hold the budget between their bounds."""
    allocation, high = config.allocation, config.setting("max_rank")
    if allocation.energy is not None:
        return []
    total = round(average_rank(allocation, len(limits), default=config.rank) * len(limits)) or 1
    if allocation.rule == "uniform" and total % len(limits):
        return [f"total_rank={total} is not a multiple of the {len(limits)} matrices, which rule=uniform needs"]
    bounds = {name: limit if high is None else min(limit, high) for name, limit in limits.items()}
    try:
        allocate_ranks(dict.fromkeys(limits, 1.0), total, min_rank=config.setting("min_rank"), max_rank=bounds)
    except ValueError as error:
        return [str(error)]
    return []


def unsupported_warmup(config: RunConfig, schedule: Schedule) -> list[str]:
    """Return an error if the warm-up is not shorter than the training."""
    warmup, allocation = schedule.warmup_steps(config.allocation), config.allocation
    if (last := allocation.last_cut(warmup)) >= schedule.total_steps > warmup:
        return [
            f"the last of {allocation.max_reallocations} cuts would come after {pluralize(last, 'step')}, and training has "
            f"{schedule.total_steps:,}; lower reallocate_every={allocation.reallocate_every}, or max_reallocations"
        ]
    if warmup < schedule.total_steps:
        return []
    return [
        f"a warm-up of {pluralize(warmup, 'step')} is not shorter than the training of "
        f"{pluralize(schedule.total_steps, 'step')}: ranks are never allocated; use more epochs, or a smaller warmup_steps "
        "(steps, or a share such as 0.3)"
    ]


METHODS = tuple(
    Method(
        name,
        summary,
        meets=BOTH,
        implementation=_APPLIED + function,
        adapts_experts=True,
        settings=ALLOCATION_SETTINGS,
        check_settings=unsupported_bounds,
        check_matrices=unsupported_budget,
        check_schedule=unsupported_warmup,
    )
    for name, summary, function in (
        (
            "glora",
            "Gives each matrix its rank after the warm-up: by gradient norm, or rule=spectrum by what was learned.",
            "apply_glora",
        ),
        (
            "shuffled",
            "Control: GLoRA's ranks, dealt out at random among matrices of the same shape.",
            "apply_shuffled",
        ),
    )
)
