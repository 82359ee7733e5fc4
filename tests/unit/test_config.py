"""Values that no field of an allocation's configuration can have."""

from __future__ import annotations

import dataclasses

import pytest

from glora import RankAllocationConfig


def test_every_error_of_a_configuration_is_reported_together() -> None:
    with pytest.raises(ValueError, match="total_rank=0 must be") as error:
        RankAllocationConfig(
            total_rank=0, warmup_steps=1.5, beta=1.0, signal="size", budget="time", keep="best", seed=-1
        )
    for rule in (
        "warmup_steps=1.5",
        "beta=1.0 must be in [0, 1)",
        "signal='size'",
        "budget='time'",
        "keep='best'",
        "seed=-1",
    ):
        assert rule in str(error.value)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(RankAllocationConfig)])
def test_true_and_false_are_no_values_of_a_configuration(field: str) -> None:
    for value in (True, False):
        with pytest.raises(ValueError, match=f"{field}={value} must be"):
            RankAllocationConfig(**{field: value})
