"""The rules that cut, in an experiment: how wide they start, what they are named, and what is refused."""

from __future__ import annotations

import math

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.methods.glora import average_rank, start_rank
from glora.experiments.methods.registry import find_method


@pytest.mark.parametrize(
    ("average", "factor", "start"), [(8, 4, 32), (0.5, 4, 2), (2.5, 2, 5), (1, 1.01, 2), (3, 1.1, 4)], ids=str
)
def test_the_start_is_wider_than_the_average(average: float, factor: float, start: int) -> None:
    assert start_rank(average, factor) == start > average


def test_the_average_is_that_of_the_budget() -> None:
    allocation = RunConfig.model_validate({"total_rank": 36}).allocation
    assert average_rank(allocation, 72, default=8) == 0.5
    assert average_rank(RunConfig.model_validate({"average_rank": 2}).allocation, 72, default=8) == 2
    assert average_rank(RunConfig().allocation, 72, default=8) == 8


def test_a_variant_is_validated_as_a_whole() -> None:
    method = find_method("glora:energy=0.9:rule=spectrum")
    assert method.name == "glora:rule=spectrum:energy=0.9"
    config = method.normalise(RunConfig(), seed=3)
    assert (config.allocation.rule, config.allocation.energy, config.setting("keep")) == ("spectrum", 0.9, "svd")
    with pytest.raises(ValueError, match="energy=0.9 needs rule='spectrum'"):
        find_method("glora:energy=0.9")
    with pytest.raises(ValueError, match="start_factor"):
        find_method("lora:start_factor=2")


def test_a_start_that_nobody_reads_changes_no_run() -> None:
    lora = find_method("lora")
    wide, narrow = (lora.normalise(RunConfig(start_factor=f), seed=0) for f in (4, 2))
    assert wide.key == narrow.key
    spectrum = find_method("glora:rule=spectrum")
    assert spectrum.normalise(RunConfig(start_factor=2), seed=0).key != spectrum.normalise(RunConfig(), seed=0).key


def test_runs_of_before_the_rules_keep_their_names() -> None:
    old = RunConfig.model_validate(RunConfig(method="glora").model_dump() | {"allocation": {"keep": "norm"}})
    assert old.key == RunConfig(method="glora").key


@pytest.mark.parametrize(
    ("fields", "words"), [({"max_rank": 1}, "cannot spend"), ({"min_rank": 3}, "more than")], ids=str
)
def test_bounds_of_a_cut_are_those_of_its_average(fields: dict, words: str) -> None:
    (error,) = find_method("glora:rule=spectrum:average_rank=2").setting_errors(RunConfig.model_validate(fields))
    assert words in error
    assert math.isclose(average_rank(RunConfig.model_validate({"average_rank": 2}).allocation, 6, default=8), 2)
