"""Nothing of the library keeps a model alive that its user has dropped: no registry, no hook, no patch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocator, accelerate_lora
from glora.lora.adapter import RankedAdapter
from glora.lora.following import follow_loading
from integration.training.loop_case import update

WARMUP = 3
CASES: dict[str, tuple[dict[str, Any], int]] = {  # settings, and steps before the model is dropped
    "before the first step": ({}, 0),
    "recording": ({}, 2),
    "recording, with hooks on the layers": ({"signal": "delta_exact", "exact_every": 1}, 2),
    "finished": ({"min_rank": 1}, WARMUP + 1),
    "finished, a matrix at rank 0": ({"max_rank": {"0": 0}}, WARMUP + 1),
    "recording for the next reallocation": ({"reallocate_every": 2}, WARMUP + 1),
}


def train(settings: dict[str, Any], steps: int, prepare: Callable[[nn.Module], object]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), LoraConfig(r=2, target_modules=["0", "2"])
    )
    prepare(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    allocator = RankAllocator(model, optimizer, {"warmup_steps": WARMUP, **settings})
    for _ in range(steps):
        model(torch.randn(4, 6)).square().sum().backward()
        update(optimizer, allocator)
    assert allocator.allocated == (steps > WARMUP)
    return {"model": model, "base": model.base_model.model, "optimizer": optimizer, "allocator": allocator}


def alive(dropped: dict[str, Any]) -> list[str]:
    """Objects that only the library can still hold."""
    references = {name: weakref.ref(thing) for name, thing in dropped.items()}
    dropped.clear()
    gc.collect()
    return [name for name, reference in references.items() if reference() is not None]


@pytest.mark.parametrize("detached", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("case", CASES)
def test_an_allocators_model(case: str, detached: bool) -> None:
    made = train(*CASES[case], prepare=lambda model: None)
    if detached:
        made["allocator"].detach()
    assert alive(made) == []


@pytest.mark.parametrize("undone", [False, True])
def test_an_accelerated_model(undone: bool) -> None:
    made = train(*CASES["finished, a matrix at rank 0"], prepare=accelerate_lora)
    made["acceleration"] = accelerate_lora(made["model"])
    if undone:
        made["acceleration"].undo()
    assert alive(made) == []


def test_a_model_that_follows_what_is_loaded() -> None:
    made = train(*CASES["finished"], prepare=lambda model: follow_loading(RankedAdapter(model)))
    made["adapter"] = made["allocator"].adapter
    follow_loading(made["adapter"], made["optimizer"])
    assert alive(made) == []


def test_an_allocator_lives_as_long_as_its_optimizer() -> None:
    """Nobody has to keep it in a variable: the warm-up goes on."""
    made = train(*CASES["recording"], prepare=lambda model: None)
    optimizer = made["optimizer"]
    assert alive(made) == ["model", "base", "optimizer", "allocator"]
    del optimizer
