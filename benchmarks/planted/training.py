"""One run: a setting, a variant and a seed to a record."""

from __future__ import annotations

import dataclasses
import time
from typing import Any
from unittest import mock

import torch
from benchmarks.planted.task import Setting
from benchmarks.planted.wide import VARIANTS

RISE = 0.05  # share of the steps over which the learning rate rises


def train(setting: Setting, variant: str, seed: int) -> dict[str, Any]:
    """Train one student and say what became of it, as plain values."""
    if VARIANTS[variant].estimated:
        with mock.patch("glora.scoring.recorder.measured_steps", return_value=0):
            return _train(setting, variant, seed)
    return _train(setting, variant, seed)


def _train(setting: Setting, variant: str, seed: int) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    how = VARIANTS[variant]
    task = how.task(setting, seed)
    parameters = [p for p in task.student.parameters() if p.requires_grad]
    learning_rate = how.learning_rate or setting.learning_rate
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    rise = max(1, round(RISE * setting.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (setting.steps - step) / (setting.steps - rise))
    )
    uniform = dict.fromkeys(task.planted, how.start * setting.rank)
    allocator = how.allocate(task, optimizer, seed)
    start, after_warmup, norms = task.held_out_loss(), None, None
    for step in range(setting.steps):
        task.loss(*task.batch()).backward()
        if allocator is not None:
            allocator.step()
            if step == setting.warmup_steps - 1:
                norms = allocator.norms
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step == setting.warmup_steps - 1:
            after_warmup = task.held_out_loss()
    ranks = uniform if allocator is None else allocator.ranks
    costs = {name: sum(update.shape) for name, update in task.updates.items()}
    return {
        "setting": dataclasses.asdict(setting),
        "variant": variant,
        "seed": seed,
        "loss": task.held_out_loss(),
        "loss_before_training": start,
        "loss_after_warmup": after_warmup,
        "parameters": sum(rank * costs[name] for name, rank in ranks.items()),
        "ranks": ranks,
        "planted": task.planted,
        "norms": norms,
        "seconds": round(time.perf_counter() - began, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }
