"""A training loop that ends within its warm-up is reported at its end; one that was resumed or detached is not."""

from __future__ import annotations

import atexit
import gc
import re
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from glora import RankAllocator
from integration.training.loop_case import update
from new_process import run_program

CUT = dict(rule="spectrum", average_rank=1)
CUTS = dict(**CUT, reallocate_every=2, max_reallocations=3)
PLAIN = "3 of 4 warm-up steps.*plain LoRA.*; lower warmup_steps=4"
LOOPS: list[tuple[dict[str, Any], str]] = [  # arguments of `train`, and what is reported
    (dict(steps=0), ""),
    (dict(steps=3), PLAIN),
    (dict(steps=5), ""),
    (dict(steps=3, detach=True), ""),
    (dict(steps=0, after=2), PLAIN.replace("3", "2")),
    (dict(steps=0, after=5), ""),
    (dict(steps=3, **CUT), PLAIN),
    (dict(steps=4, **CUT), ""),
    (dict(steps=3, **CUTS), "3 of 4 warm-up steps.*LoRA of the rank that it started with.*lower warmup_steps=4"),
    (dict(steps=6, **CUTS), "6 steps, before the last of 3 cuts at step 8: .*lower warmup_steps=4, train for longer"),
    (dict(steps=8, **CUTS), ""),
    (dict(steps=3, keep=True), PLAIN),  # at the end of the process
]
KEPT: list[torch.optim.Optimizer] = []  # to the end of the process


def train(
    steps: int, *, after: int | None = None, detach: bool = False, keep: bool = False, **fields: Any
) -> dict[str, Any]:
    state = None if after is None else train(after, detach=True)
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 6)), LoraConfig(r=4, target_modules=["0"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    allocator = RankAllocator(model, optimizer, dict(warmup_steps=4, **fields))
    if state is not None:
        allocator.load_state_dict(state)
    for _ in range(steps):
        model(torch.ones(1, 6)).sum().backward()
        update(optimizer, allocator)
    if detach:
        allocator.detach()
    KEPT.extend([optimizer] * keep)
    return allocator.state_dict()


def train_all() -> None:
    for arguments, _ in LOOPS:
        train(**arguments)
        gc.collect()
    atexit._run_exitfuncs()  # which a forked process leaves out


def test_a_loop_that_ends_within_its_warmup_or_before_its_last_cut_is_reported() -> None:
    reported = [line for line in run_program(train_all).stderr.splitlines() if "training ended" in line]
    for line, expected in zip(reported, [expected for _, expected in LOOPS if expected], strict=True):
        assert re.search(expected, line)
