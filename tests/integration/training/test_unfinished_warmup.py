"""A training loop that ends within its warm-up is reported at its end; one that was resumed or detached is not."""

from __future__ import annotations

import re
import subprocess
import sys

SHORT_LOOP = """
import gc, torch
from peft import LoraConfig, get_peft_model
from glora import RankAllocationConfig, RankAllocator

def train(steps, state=None, detach=False, keep=False, **fields):
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 6)), LoraConfig(r=4, target_modules=["0"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=4, **fields))
    if state is not None:
        allocator.load_state_dict(state)
    for _ in range(steps):
        model(torch.ones(1, 6)).sum().backward()
        allocator.step()
        optimizer.step()
        optimizer.zero_grad()
    if detach:
        allocator.detach()
    return optimizer if keep else allocator.state_dict()

"""
LAST = "after 6 steps, before the last of 3 cuts at step 8: the adapter is larger than its budget"


def test_a_loop_that_ends_within_its_warmup_is_reported() -> None:
    loops = {  # and the steps that are reported
        "train(0)": [],
        "train(3)": [3],
        "train(5)": [],
        "train(3, detach=True)": [],
        "train(0, state=train(2, detach=True))": [2],
        "train(0, state=train(5))": [],
        "train(3, rule='spectrum', average_rank=1)": [3],
        "train(4, rule='spectrum', average_rank=1)": [],
        "optimizer = train(3, keep=True)": [3],  # at the end of the process
    }
    program = SHORT_LOOP + "\n".join(f"{loop}; gc.collect()" for loop in loops)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reported = [line for line in run.stderr.splitlines() if "warm-up" in line]
    steps = [int(line.split(" of 4 warm-up steps")[0].split()[-1]) for line in reported]
    assert steps == [step for expected in loops.values() for step in expected]
    assert all("plain LoRA" in line and "; lower warmup_steps=4" in line for line in reported)


def test_a_loop_that_ends_before_its_last_cut_is_reported() -> None:
    """At the end of the process, too; with one process for each, because only what is alive then is reported."""
    for steps, expected in (
        (3, "after 3 of 4 warm-up steps.*LoRA of the rank that it started with"),
        (6, LAST),
        (8, ""),
    ):
        loop = f"train({steps}, keep=True, rule='spectrum', average_rank=1, reallocate_every=2, max_reallocations=3)"
        program = f"{SHORT_LOOP}optimizer = {loop}"
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        reported = [line for line in run.stderr.splitlines() if "training ended" in line]
        assert len(reported) == bool(expected)
        assert all(re.search(expected, line) and "lower warmup_steps=4, train for longer" in line for line in reported)
