"""GLoRA, and its control: the same ranks dealt out at random."""

from __future__ import annotations

from collections.abc import Mapping

from glora.allocation.shares import allocate_ranks
from glora.experiments.config import ALLOCATION_SETTINGS, RunConfig
from glora.experiments.methods.base import BOTH, Method, Schedule
from glora.messages import pluralize

_APPLIED = "glora.experiments.methods.applied.glora:"


def unsupported_bounds(config: RunConfig) -> list[str]:
    """Return bounds on the ranks that no model could meet."""
    low, high, average = config.setting("min_rank"), config.setting("max_rank"), config.rank
    if high is not None and low > high:
        return [f"min_rank={low} is above max_rank={high}; lower min_rank or raise max_rank"]
    if config.allocation.total_rank is not None:
        return []  # whether it fits the bounds depends on the number of matrices
    if low > average:
        return [f"min_rank={low} is more than the budget, rank={average} on average; lower it or give a total_rank"]
    if high is not None and high < average:
        return [f"max_rank={high} cannot spend the budget, rank={average} on average; raise it or give a total_rank"]
    return []


def unsupported_budget(config: RunConfig, limits: Mapping[str, int]) -> list[str]:
    """Return an error if the matrices cannot hold the budget between their bounds."""
    total = config.allocation.total_rank or len(limits) * config.rank
    high = config.setting("max_rank")
    bounds = {name: limit if high is None else min(limit, high) for name, limit in limits.items()}
    try:
        allocate_ranks(dict.fromkeys(limits, 1.0), total, min_rank=config.setting("min_rank"), max_rank=bounds)
    except ValueError as error:
        return [str(error)]
    return []


def unsupported_warmup(config: RunConfig, schedule: Schedule) -> list[str]:
    """Return an error if the warm-up is not shorter than the training."""
    warmup = schedule.warmup_steps(config.allocation.warmup_steps)
    if warmup < schedule.total_steps:
        return []
    default = " (the default is one epoch)" if config.allocation.warmup_steps is None else ""
    return [
        f"a warm-up of {pluralize(warmup, 'step')}{default} is not shorter than the training of "
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
            "Shares the ranks out once, after the warm-up, by the averaged norm of each matrix's gradient.",
            "apply_glora",
        ),
        (
            "shuffled",
            "Control: GLoRA's ranks, dealt out at random among matrices of the same shape.",
            "apply_shuffled",
        ),
    )
)
