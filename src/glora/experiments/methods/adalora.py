"""AdaLoRA's entry, and its schedule for a training of any length.

Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv:2303.10512. A warm-up leaves the
budget alone; then it falls along a cubic to the target; in the last phase the masks are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

from glora.experiments.config import RunConfig
from glora.experiments.methods.base import Method, Schedule

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


METHODS = (
    Method(
        "adalora",
        "Prunes directions by importance while training, from 1.5 times the budget (Zhang et al. 2023).",
        meets=("rank",),
        implementation="glora.experiments.methods.applied.adalora:apply_adalora",
        aliases=("adaptive LoRA",),
        settings=frozenset({"total_rank"}),
        usual_rates=(5e-4, 2.2e-3),  # the authors' GLUE scripts
        check_schedule=unsupported_length,
    ),
)
