"""What a method refuses in a run's settings or its length, as sentences: known before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glora.messages import pluralize

if TYPE_CHECKING:
    from glora.experiments.config import RunConfig
    from glora.experiments.methods.base import Schedule


def adalora_faults(_config: RunConfig, schedule: Schedule) -> list[str]:
    """AdaLoRA needs a step to measure and one to mask."""
    from glora.experiments.methods.adalora import AdaLoraSchedule

    try:
        AdaLoraSchedule.of(schedule.total_steps)
    except ValueError as error:
        return [str(error)]
    return []


def allocation_faults(config: RunConfig) -> list[str]:
    """GLoRA's own settings, and bounds that no model could meet."""
    low, high, average = config.setting("min_rank"), config.setting("max_rank"), config.rank
    if high is not None and low > high:
        return [f"min_rank={low} is above max_rank={high}; lower the one or raise the other"]
    if config.allocation.total_rank is not None:
        return []  # whether it fits the bounds depends on the number of matrices
    if low > average:
        return [f"min_rank={low} is more than the budget, rank={average} on average; lower it or give a total_rank"]
    if high is not None and high < average:
        return [f"max_rank={high} cannot spend the budget, rank={average} on average; raise it or give a total_rank"]
    return []


def warmup_faults(config: RunConfig, schedule: Schedule) -> list[str]:
    """The warm-up must be shorter than the training."""
    warmup = schedule.warmup_steps(config.allocation.warmup_steps)
    if warmup < schedule.total_steps:
        return []
    default = " (the default is one epoch)" if config.allocation.warmup_steps is None else ""
    return [
        f"a warm-up of {pluralize(warmup, 'step')}{default} is not shorter than the training of "
        f"{pluralize(schedule.total_steps, 'step')}, so "
        "the ranks would never be allocated; use more epochs, or a smaller warmup_steps (steps, or a share such as 0.3)"
    ]
