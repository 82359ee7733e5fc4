"""AdaLoRA's schedule at any length."""

from __future__ import annotations

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.methods.base import Schedule
from glora.experiments.methods.limits import AdaLoraSchedule
from glora.experiments.methods.registry import METHODS


@pytest.mark.parametrize(
    ("steps", "tinit", "tfinal", "interval"),
    [
        (2, 0, 1, 1),
        (3, 0, 2, 1),
        (10, 1, 5, 1),
        (100, 12, 50, 1),
        (6_700, 804, 3350, 13),
        (85_900, 10_308, 42_950, 100),
    ],
)
def test_adalora_schedule_has_the_authors_proportions_at_any_length(steps, tinit, tfinal, interval) -> None:
    schedule = AdaLoraSchedule.of(steps)
    assert (schedule.tinit, schedule.tfinal, schedule.deltaT) == (tinit, tfinal, interval)


def test_adalora_schedule_always_prunes_after_something_was_measured() -> None:
    for steps in range(2, 300):
        schedule = AdaLoraSchedule.of(steps)
        first_final_step = steps - schedule.tfinal  # counted from 0; importance is measured at the steps before
        assert schedule.tinit < first_final_step <= steps - 1
        assert schedule.tfinal >= 1


def test_adalora_refuses_a_run_of_one_step() -> None:
    (error,) = METHODS["adalora"].schedule_errors(RunConfig(), Schedule(total_steps=1, steps_per_epoch=1))
    assert "at least 2 optimizer steps" in error
