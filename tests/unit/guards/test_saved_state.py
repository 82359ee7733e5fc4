"""A damaged or older state is refused with one message, before anything changes."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from transformers import TrainerState

from glora import RankAllocator
from glora.guards.saved_state import check_trainer_state
from glora.reallocation import Reallocation
from glora.trainer_callback import _saved_state
from unit.test_allocator import config, lora, sgd, started, train


@functools.cache
def saved_text() -> str:
    model, optimizer, allocator = started(warmup_steps=2, reallocate_every=3)
    train(model, optimizer, allocator, 3)
    return json.dumps(allocator.state_dict())


def saved() -> dict[str, Any]:
    return json.loads(saved_text())


def fresh() -> RankAllocator:
    model = lora()
    return RankAllocator(model, sgd(model), config(warmup_steps=2, reallocate_every=3))


COUNTS = ("steps", "recorded_steps", "non_finite_steps", "reallocations")
RANKS = ("ranks", "initial_ranks")
REALLOCATION = vars(Reallocation(2, 2, 2, (), 1, 7, 8, 8, 100, 100, 0.9))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2, .* reads 1"),
        ({"steps": -5}, "steps must be an int from 0 to 1,000,000,000,000"),
        ({"steps": True}, "steps must be an int"),
        ({"norms": {"first": float("nan"), "second": 1.0}}, "norms must be a number of at least 0 that float32 has"),
        ({"norms": [1.0, 2.0]}, "norms must be"),
        ({"ranks": {"first": -1, "second": 4}}, "ranks must be a rank from 0 to 1,048,576"),
        ({"ranks": {"first": 0, "second": 0}}, "no matrix has a rank"),
        ({"scalings": {"first": True, "second": 2.0}}, "scalings must be a number up to 1e[+]30"),
        ({"scalings": {"first": 2.0}}, "scalings do not have every matrix with a rank"),
        ({"recording": 1}, "recording must be true or false"),
        ({"recording": True, "config": {"warmup_steps": 2, "reallocate_every": None}}, "no reallocation is to come"),
        ({"allocated": False}, "contradict"),
        ({"reallocation": {"step": 2}}, "reallocation must be"),
        ({"reallocation": None}, "contradict"),
        ({"recorded_steps": 99}, "more recorded_steps"),
        *(({name: 10**30}, f"{name} must be an int from 0") for name in COUNTS),
        *(({name: {"first": 10**30, "second": 4}}, f"{name} must be a rank from 0 to") for name in RANKS),
        ({"initial_ranks": {"first": 2**20 + 1, "second": 4}}, "initial_ranks must be a rank from 0 to 1,048,576"),
        ({"norms": {"first": 1e39, "second": 1.0}}, "norms must be a number of at least 0 that float32 has"),
        ({"norms": {"first": 10**400, "second": 1.0}}, "norms must be a number"),
        ({"scalings": {"first": 1e31, "second": 2.0}}, "scalings must be a number up to"),
        ({"non_finite_norms": {"first": 10**30, "second": 0}}, "non_finite_norms must be a count"),
        *(({"sketch_ratios": [x, 1.0]}, "sketch_ratios must be a list of numbers") for x in (-1, 1e39, 10**400, True)),
        ({"sketch_ratios": [1.0]}, "sketch_ratios are of more or fewer matrices"),
        *(({"config": {"warmup_steps": x}}, "config must be a configuration") for x in (0, 10**30, "2", None, True)),
        ({"reallocations": 4}, "more reallocations than steps"),
        *(({"reallocation": REALLOCATION | {k: 10**30}}, "reallocation must be") for k in REALLOCATION),
        ({"reallocation": REALLOCATION | {"energy_kept": 1.5}}, "reallocation must be"),
        ({"reallocation": REALLOCATION | {"step": 4}}, "the last reallocation is later than steps"),
        ({"non_finite_steps": 50}, "more non_finite_steps"),
    ],
    ids=str,
)
def test_damaged_states(change: dict[str, Any], said: str) -> None:
    allocator = fresh()
    with pytest.raises(ValueError, match=f"cannot be loaded: .*{said}.*another checkpoint"):
        allocator.load_state_dict({**saved(), **change})
    assert allocator.ranks == {"first": 4, "second": 4}
    assert allocator.steps == 0


def test_all_but_the_measured_ratios_is_needed() -> None:
    for name in saved():
        allocator, state = fresh(), {key: value for key, value in saved().items() if key != name}
        if name == "sketch_ratios":
            allocator.load_state_dict(state)
            assert allocator.steps == 3
            continue
        with pytest.raises(ValueError, match=f"{name} (missing|None)"):
            allocator.load_state_dict(state)


@pytest.mark.parametrize("step", [10**30, -1, "2", 2.0, True, None])
def test_a_number_of_steps_that_no_training_has_made(step: Any) -> None:
    with pytest.raises(ValueError, match="trainer_state.json .*global_step=.*another checkpoint"):
        check_trainer_state(TrainerState(global_step=step))


def test_an_allocation_of_more_steps_than_its_checkpoint() -> None:
    entry = {"attributes": {"saved_state": saved()}}
    state = TrainerState(global_step=3, stateful_callbacks={"RankAllocationCallback": entry})
    assert _saved_state(state, "RankAllocationCallback")["steps"] == 3
    state.global_step = 2
    with pytest.raises(ValueError, match="state .*3 steps, .*checkpoint 2; .*another"):
        _saved_state(state, "RankAllocationCallback")


@pytest.mark.parametrize("state", [None, [], "state", 3])
def test_what_is_not_a_state(state: Any) -> None:
    with pytest.raises(ValueError, match="cannot be loaded: .*not a dictionary"):
        fresh().load_state_dict(state)


def test_steps_that_were_left_out_are_restored() -> None:
    model = lora()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    allocator = RankAllocator(model, optimizer, config())
    train(model, optimizer, allocator, 1)
    model(torch.randn(2, 6)).sum().backward()
    model.base_model.model.first.lora_B.default.weight.grad[0, 0] = torch.nan
    allocator.step()
    optimizer.zero_grad()
    optimizer.step()
    twin = lora()
    again = RankAllocator(twin, sgd(twin), config())
    again.load_state_dict(json.loads(json.dumps(allocator.state_dict())))
    assert again.non_finite_steps == allocator.non_finite_steps == 1
