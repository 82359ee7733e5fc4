"""A training loop that ends within its warm-up is reported at its end; one that was resumed or detached is not."""

from __future__ import annotations

import subprocess
import sys

SHORT_LOOP = """
import gc, torch
from peft import LoraConfig, get_peft_model
from glora import RankAllocationConfig, RankAllocator

def train(steps, state=None, detach=False, keep=False):
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 6)), LoraConfig(r=2, target_modules=["0"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=4))
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


def test_a_loop_that_ends_within_its_warmup_is_reported() -> None:
    loops = {  # and the steps that are reported
        "train(0)": [],
        "train(3)": [3],
        "train(5)": [],
        "train(3, detach=True)": [],
        "train(0, state=train(2, detach=True))": [2],
        "train(0, state=train(5))": [],
        "optimizer = train(3, keep=True)": [3],  # at the end of the process
    }
    program = SHORT_LOOP + "\n".join(f"{loop}; gc.collect()" for loop in loops)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    reported = [line for line in run.stderr.splitlines() if "warm-up" in line]
    steps = [int(line.split(" of 4 warm-up steps")[0].split()[-1]) for line in reported]
    assert steps == [step for expected in loops.values() for step in expected]
    assert all("plain LoRA; lower warmup_steps=4" in line for line in reported)
