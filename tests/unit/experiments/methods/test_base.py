"""Names, schedules and unsupported settings of the methods."""

from __future__ import annotations

import re

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.methods.base import Schedule
from glora.experiments.methods.registry import METHODS


def test_every_method_says_in_a_line_what_it_is() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert 20 < len(method.summary) < 120
        assert "\n" not in method.summary


def test_settings_that_a_method_does_not_look_at_do_not_make_its_runs_new_ones() -> None:
    changed = RunConfig(beta=0.95, warmup_steps=7, total_rank=40, min_rank=1)
    assert METHODS["lora"].normalise(changed, 3).key == METHODS["lora"].normalise(RunConfig(), 3).key
    assert METHODS["adalora"].normalise(changed, 3).allocation.total_rank == 40
    assert METHODS["adalora"].normalise(changed, 3).allocation.beta == 0.9
    for name in ("glora", "shuffled"):
        kept = METHODS[name].normalise(changed, 3)
        assert kept == changed.model_copy(update={"method": name, "seed": 3})


def test_full_fine_tuning_has_its_own_learning_rate_unless_one_is_given() -> None:
    full = METHODS["full"]
    assert full.normalise(RunConfig(), 0).learning_rate == 2e-5
    assert full.normalise(RunConfig(learning_rate=2e-4), 0).learning_rate == 2e-4, "given, if only the default"
    assert full.normalise(RunConfig(epochs=1), 3) == RunConfig(method="full", seed=3, epochs=1, learning_rate=2e-5)
    assert METHODS["lora"].normalise(RunConfig(), 0).learning_rate == 2e-4


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "total", "per_epoch"),
    [(100, 32, 3, 12, 4), (96, 32, 3, 9, 3), (100, 32, 2.5, 10, 4), (100, 32, 0.3, 2, 4), (5, 32, 1, 1, 1)],
)
def test_steps_are_counted_as_trainer_counts_them(examples, batch_size, epochs, total, per_epoch) -> None:
    schedule = Schedule.of(examples, batch_size, epochs)
    assert (schedule.total_steps, schedule.steps_per_epoch) == (total, per_epoch)


@pytest.mark.parametrize(
    ("fields", "epochs", "steps"),
    [
        ({}, 3, 10),
        ({}, 1, 1),
        ({"warmup_steps": 0.25}, 3, 8),
        ({"warmup_steps": 1}, 3, 1),
        ({"warmup_steps": 12.0}, 3, 12),
        ({"rule": "spectrum"}, 3, 8),
    ],
    ids=str,
)
def test_warmup_is_an_epoch_a_share_or_steps(fields: dict, epochs: int, steps: int) -> None:
    schedule = Schedule(total_steps=10 * epochs, steps_per_epoch=10)
    assert schedule.warmup_steps(RunConfig.model_validate(fields).allocation) == steps


def test_a_warmup_that_is_not_shorter_than_training_is_refused() -> None:
    config = RunConfig(method="glora", warmup_steps=12)
    (error,) = METHODS["glora"].schedule_errors(config, Schedule(total_steps=12, steps_per_epoch=4))
    assert re.search("12 steps .*not shorter .*training", error)
    assert METHODS["glora"].schedule_errors(config, Schedule(total_steps=13, steps_per_epoch=4)) == []
    assert METHODS["lora"].schedule_errors(config, Schedule(total_steps=12, steps_per_epoch=4)) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"min_rank": 5, "max_rank": 4, "total_rank": 90}, "min_rank=5 is above max_rank=4"),
        ({"min_rank": 9}, "min_rank=9 is more than the budget, rank=8 on average"),
        ({"max_rank": 7}, "max_rank=7 cannot spend the budget, rank=8 on average"),
    ],
)
def test_bounds_that_no_model_can_meet_are_refused_before_one_is_loaded(
    settings: dict[str, int], expected: str
) -> None:
    (error,) = METHODS["glora"].setting_errors(RunConfig(**settings))
    assert expected in error
    assert METHODS["lora"].setting_errors(RunConfig(**settings)) == []


def test_bounds_that_a_model_may_meet_are_not_refused() -> None:
    for settings in ({}, {"min_rank": 8, "max_rank": 8}, {"min_rank": 9, "total_rank": 900}, {"signal": "lora_b"}):
        assert METHODS["glora"].setting_errors(RunConfig(**settings)) == []
