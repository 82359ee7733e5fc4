"""A small network with LoRA and the training loop that users write."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocationConfig, RankAllocator

WARMUP, STEPS = 4, 8


def chain(**shapes: tuple[int, int]) -> nn.Sequential:
    """Linear layers of these names, and tanh between them."""
    model = nn.Sequential()
    for name, shape in shapes.items():
        if len(model):
            model.append(nn.Tanh())
        model.add_module(name, nn.Linear(*shape))
    return model


def lora(**fields: object) -> nn.Module:
    torch.manual_seed(0)
    settings = dict(r=4, lora_alpha=8, target_modules=["first", "second"], modules_to_save=["head"]) | fields
    return get_peft_model(chain(first=(6, 16), second=(16, 12), head=(12, 3)), LoraConfig(**settings))


def adamw(model: nn.Module, **fields: object) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **dict(lr=1e-2) | fields)


def allocator_for(model: nn.Module, optimizer: torch.optim.Optimizer, **fields: object) -> RankAllocator:
    return RankAllocator(model, optimizer, RankAllocationConfig(**dict(warmup_steps=WARMUP) | fields))


def batch_of(step: int, size: int = 8) -> torch.Tensor:
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def update(optimizer: torch.optim.Optimizer, allocator: RankAllocator) -> None:
    allocator.step()
    optimizer.step()
    optimizer.zero_grad()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, allocator: RankAllocator, steps: range) -> None:
    for step in steps:
        loss_of(model, batch_of(step)).backward()
        update(optimizer, allocator)


def started(optimizer: dict | None = None, **fields: object) -> tuple[nn.Module, torch.optim.Optimizer, RankAllocator]:
    model = lora()
    made = adamw(model, **optimizer or {})
    return model, made, allocator_for(model, made, **fields)


def plain_run(steps: int = STEPS, **fields: object) -> tuple[nn.Module, RankAllocator]:
    model, optimizer, allocator = started(**fields)
    train(model, optimizer, allocator, range(steps))
    return model, allocator


def same_training(one: tuple[nn.Module, RankAllocator], other: tuple[nn.Module, RankAllocator], rtol: float) -> None:
    assert one[1].norms == pytest.approx(other[1].norms, rel=rtol)
    assert one[1].ranks == other[1].ranks
    assert one[1].steps == other[1].steps
    for (name, p), (_, q) in zip(one[0].named_parameters(), other[0].named_parameters()):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol / 10, msg=name)
