"""Limits of the methods, found before a model is loaded: their ranks, their budgets and the length of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from glora.allocation.shares import allocate_ranks
from glora.config import RankAllocationConfig
from glora.experiments.config import RunConfig
from glora.experiments.methods.base import Schedule
from glora.messages import pluralize


def uniform_total(config: RunConfig, matrices: int) -> int | None:
    """Return the sum of all ranks that total_rank or average_rank gives; None for the run's rank everywhere."""
    total, average = config.allocation.total_rank, config.allocation.average_rank
    return total if average is None else round(average * matrices)


def unsupported_total(config: RunConfig, limits: Mapping[str, int]) -> list[str]:
    """Return an error if a total_rank has less than one rank for each matrix, or more than they can use."""
    total, most = uniform_total(config, len(limits)), sum(limits.values())
    if total is None or len(limits) <= total <= most:
        return []
    return [f"total_rank={total} must be from {len(limits):,} to {most:,} for {pluralize(len(limits), 'matrix')}"]


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


INITIAL_SHARE, FINAL_SHARE = 0.12, 0.5
"""Shares of all steps: the warm-up, and the final phase. The authors' GLUE scripts (github.com/QingruZhang/AdaLoRA,
NLU/scripts) give 9, 12, 12, 12 and 15 %, and 58, 52, 49, 44 and 46 %, for MNLI, CoLA, QNLI, SST-2 and RTE."""

ALLOCATIONS, LONGEST_INTERVAL = 500, 100
"""Masks are renewed every total/500 steps, every 100 at most: the same scripts give 1 for 3,900 steps (RTE), 10 for
6,700 (CoLA) and 100 for 16,000 and more (QNLI, SST-2, MNLI)."""

MIN_STEPS = 2
"""One step to measure importance, one to mask."""


@dataclass(frozen=True)
class AdaLoraSchedule:
    """AdaLoRA's three phases in optimizer steps, under the names of `peft.AdaLoraConfig`."""

    tinit: int
    tfinal: int
    deltaT: int
    total_step: int

    @classmethod
    def of(cls, total_steps: int) -> AdaLoraSchedule:
        """Return the authors' proportions for this many steps, at least `MIN_STEPS`."""
        # At least one step each for measuring (step 0 always does) and for the final phase, whose first step masks.
        tfinal = min(max(1, round(FINAL_SHARE * total_steps)), total_steps - 1)
        tinit = min(round(INITIAL_SHARE * total_steps), total_steps - tfinal - 1)
        interval = min(max(1, total_steps // ALLOCATIONS), LONGEST_INTERVAL)
        return cls(tinit=tinit, tfinal=tfinal, deltaT=interval, total_step=total_steps)


def unsupported_length(_config: RunConfig, schedule: Schedule) -> list[str]:
    """Return an error if there are too few steps to measure and to mask."""
    if schedule.total_steps >= MIN_STEPS:
        return []
    return [
        f"adalora needs at least {MIN_STEPS} optimizer steps, this run has {schedule.total_steps}; use more epochs, more "
        "examples or a smaller batch"
    ]
