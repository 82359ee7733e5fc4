"""Your own training loop, resumed: the same bits, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from glora import RankAllocator
from integration.training.loop_case import (
    STEPS,
    WARMUP,
    adamw,
    allocator_for,
    lora,
    plain_run,
    started,
    train,
)
from integration.training.resume_case import differences


def with_dropout_and_schedule() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    model = lora(lora_dropout=0.2)
    groups = [[], []]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["lora_" not in name].append(parameter)
    optimizer = torch.optim.AdamW([{"params": groups[0], "lr": 1e-2}, {"params": groups[1], "weight_decay": 0.1}])
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def state_of(model: nn.Module, optimizer, scheduler, allocator: RankAllocator) -> dict[str, Any]:
    state = {
        "model": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "allocator": json.dumps(allocator.state_dict(), sort_keys=True),
        "random": torch.get_rng_state(),
    }
    return copy.deepcopy(state)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_rank": {"first": 0}},
        {"signal": "delta_exact", "exact_every": 3},
        {"reallocate_every": 2, "keep": "svd"},
        {"rule": "spectrum", "average_rank": 1, "reallocate_every": 2, "max_reallocations": 2},
        {"rule": "uniform", "average_rank": 2},
    ],
    ids=str,
)
def test_resumed_with_the_same_bits(fields: dict) -> None:
    model, optimizer, scheduler = with_dropout_and_schedule()
    allocator, states = allocator_for(model, optimizer, **fields), {}
    for step in range(STEPS):
        train(model, optimizer, allocator, range(step, step + 1))
        scheduler.step()
        states[step + 1] = state_of(model, optimizer, scheduler, allocator)
    for start in (0, WARMUP - 2, WARMUP - 1, WARMUP, WARMUP + 1, STEPS - 1):
        model, optimizer, scheduler = with_dropout_and_schedule()
        allocator = allocator_for(model, optimizer, **fields)
        if start:
            state = copy.deepcopy(states[start])
            allocator.load_state_dict(json.loads(state["allocator"]))
            missing = model.load_state_dict(state["model"], strict=False)
            assert not missing.unexpected_keys
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["random"])
        for step in range(start, STEPS):
            train(model, optimizer, allocator, range(step, step + 1))
            scheduler.step()
        assert not differences(states[STEPS], state_of(model, optimizer, scheduler, allocator)), start


@pytest.mark.parametrize("start", [0, WARMUP - 1, WARMUP])
def test_torchs_set_state_dict_makes_no_step_of_the_warmup(start: int) -> None:
    """It makes the optimizer's state by a step with gradients and learning rates of 0."""
    whole_model, whole_optimizer, whole = started()
    train(whole_model, whole_optimizer, whole, range(start))
    states, saved = copy.deepcopy(get_state_dict(whole_model, whole_optimizer)), whole.state_dict()
    model, optimizer, allocator = started()
    allocator.load_state_dict(saved)
    set_state_dict(model, optimizer, model_state_dict=states[0], optim_state_dict=states[1])
    for run in ((whole_model, whole_optimizer, whole), (model, optimizer, allocator)):
        train(*run, range(start, STEPS))
    assert whole.state_dict() == allocator.state_dict()
    assert all(torch.equal(p, q) for p, q in zip(whole_model.parameters(), model.parameters()))


@pytest.mark.parametrize(
    ("fields", "message"), [(dict(r=3), "rank 3, .* rank 4"), (dict(lora_alpha=4), "scaling 1, .* 2")], ids=str
)
def test_a_state_of_another_rank_or_scaling_is_refused(fields: dict, message: str) -> None:
    _, allocator = plain_run(WARMUP)
    model = lora(**fields)
    with pytest.raises(ValueError, match=message):
        allocator_for(model, adamw(model)).load_state_dict(allocator.state_dict())


def test_an_optimizer_state_that_is_loaded_too_early_is_refused() -> None:
    model, optimizer, allocator = started(min_rank=1)
    train(model, optimizer, allocator, range(STEPS))
    fresh = lora()
    early = adamw(fresh)
    early.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="after the allocator's"):
        allocator_for(fresh, early, min_rank=1).load_state_dict(allocator.state_dict())
