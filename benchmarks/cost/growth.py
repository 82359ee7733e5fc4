"""Growth of recording and reallocation: with the number of matrices, their size, and their rank."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.cost.steps import synchronize
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocationConfig, RankAllocator, compress_adapter

# (matrices, d, r)
CASES = [
    *((n, 64, 8) for n in (10, 100, 1_000, 10_000)),
    *((24, d, 8) for d in (256, 1024, 4096)),
    *((100, 768, r) for r in (2, 8, 64)),
    (224, 4096, 64),  # the linear layers of a model of 7 billion parameters
]
STEPS = 5


def grow(matrices: int, d: int, rank: int, device: torch.device, now: Callable[[], float]) -> dict[str, Any]:
    """Gradients are drawn and not computed: what is measured begins where the backward pass ends."""
    reading, reallocation, _ = _train(matrices, d, rank, device, now, warmup_steps=STEPS)
    _, cut, _ = _train(matrices, d, rank, device, now, warmup_steps=STEPS, rule="spectrum", average_rank=rank / 4)
    _, _, trained = _train(matrices, d, rank, device, now, warmup_steps=STEPS + 1)
    compression = _seconds(lambda: compress_adapter(trained, average_rank=rank / 4), device, now)
    return {
        "matrices": matrices,
        "d": d,
        "rank": rank,
        "recording_seconds": round(statistics.median(reading), 7),
        "reallocation_seconds": round(reallocation, 6),
        "cut_seconds": round(cut, 6),
        "compress_seconds": round(compression, 6),
    }


def _train(
    matrices: int, d: int, rank: int, device: torch.device, now: Callable[[], float], **fields: Any
) -> tuple[list[float], float, nn.Module]:
    """Seconds of each allocator.step() and of the reallocation, and the model."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(d, d), requires_grad=False)
    base = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(matrices))
    for linear in base:
        linear.weight, linear.in_features, linear.out_features = weight, d, d
    model = get_peft_model(base, LoraConfig(r=rank, target_modules=r"\d+")).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(**fields))
    reading, reallocate = [], allocator._reallocate
    reallocation = 0.0

    def timed() -> None:
        nonlocal reallocation
        reallocation = _seconds(reallocate, device, now)

    allocator._reallocate = timed
    for _ in range(STEPS):
        for parameter in trained:
            parameter.grad = torch.randn_like(parameter) * torch.rand((), device=device)
        reading.append(_seconds(allocator.step, device, now))
        optimizer.step()
    allocator.detach()
    return reading, reallocation, model


def _seconds(work: Callable[[], Any], device: torch.device, now: Callable[[], float]) -> float:
    synchronize(device)
    start = now()
    work()
    synchronize(device)
    return now() - start
