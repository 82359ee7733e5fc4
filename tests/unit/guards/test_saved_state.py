"""A damaged or older state is refused with one message, before anything changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from glora import RankAllocator
from unit.test_allocator import config, lora, sgd, train


def saved() -> dict[str, Any]:
    model = lora()
    optimizer = sgd(model)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=2, reallocate_every=3))
    train(model, optimizer, allocator, 3)
    return json.loads(json.dumps(allocator.state_dict()))


FIELDS = (
    "config",
    "steps",
    "norms",
    "recorded_steps",
    "non_finite_steps",
    "non_finite_norms",
    "recording",
    "allocated",
    "reallocations",
    "initial_ranks",
    "ranks",
    "scalings",
    "reallocation",
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(({name: ...}, f"{name} missing") for name in FIELDS),
        ({"version": 2}, "version 2, .* reads 1"),
        ({"steps": -5}, "steps must be an int of at least 0"),
        ({"steps": True}, "steps must be an int"),
        ({"norms": {"first": float("nan"), "second": 1.0}}, "norms must be a finite number"),
        ({"norms": [1.0, 2.0]}, "norms must be"),
        ({"ranks": {"first": -1, "second": 4}}, "ranks must be a rank of at least 0"),
        ({"ranks": {"first": 0, "second": 0}}, "no matrix has a rank"),
        ({"scalings": {"first": True, "second": 2.0}}, "scalings must be a finite number"),
        ({"scalings": {"first": 2.0}}, "scalings do not have every matrix with a rank"),
        ({"recording": 1}, "recording must be true or false"),
        ({"allocated": False}, "contradict"),
        ({"reallocation": {"step": 2}}, "reallocation must be"),
        ({"reallocation": None}, "contradict"),
        ({"recorded_steps": 99}, "more recorded_steps"),
        ({"non_finite_steps": 50}, "more non_finite_steps"),
    ],
    ids=str,
)
def test_damaged_states(change: dict[str, Any], said: str) -> None:
    state = {key: value for key, value in {**saved(), **change}.items() if value is not ...}
    model = lora()
    allocator = RankAllocator(model, sgd(model), config(warmup_steps=2, reallocate_every=3))
    with pytest.raises(ValueError, match=f"state cannot be loaded: .*{said}.*another checkpoint"):
        allocator.load_state_dict(state)
    assert allocator.ranks == {"first": 4, "second": 4}
    assert allocator.steps == 0


@pytest.mark.parametrize("state", [None, [], "state", 3])
def test_what_is_not_a_state(state: Any) -> None:
    model = lora()
    with pytest.raises(ValueError, match="state cannot be loaded: .*not a dictionary"):
        RankAllocator(model, sgd(model), config()).load_state_dict(state)


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
