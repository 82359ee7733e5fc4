"""Values that no field of an allocation's configuration can have."""

from __future__ import annotations

import dataclasses

import pytest

from glora import RankAllocationCallback, RankAllocationConfig


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


@pytest.mark.parametrize(
    ("fields", "unread"),
    [
        ({"rule": "spectrum", "average_rank": 2, "beta": 0.5}, "beta=0.5 is not read with rule='spectrum'"),
        ({"rule": "uniform", "average_rank": 2, "signal": "lora_b"}, "signal='lora_b' is not read with rule='uniform'"),
        ({"rule": "spectrum", "energy": 0.9, "exact_every": 4}, "exact_every=4 is not read with rule='spectrum'"),
        ({"exact_every": 4}, "exact_every=4 is not read with signal='delta'"),
    ],
    ids=str,
)
def test_a_field_that_the_rule_does_not_read_is_an_error_where_the_configuration_is_used(
    fields: dict, unread: str
) -> None:
    config = RankAllocationConfig(**fields)  # methods that share settings are configured so
    for used in (lambda: RankAllocationCallback(**fields), lambda: RankAllocationCallback(config)):
        with pytest.raises(ValueError, match=unread):
            used()


def test_fields_that_are_read_are_accepted() -> None:
    RankAllocationCallback(beta=0.5, signal="delta_exact", exact_every=4)
    RankAllocationCallback(rule="spectrum", average_rank=2, beta=0.9)  # the default
