"""SIGKILL at any moment, also while a checkpoint is being written: the run goes on and ends with the same bits."""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft.peft_model
import torch
from transformers import Trainer, TrainerCallback, TrainerState

from glora import last_complete_checkpoint
from integration.training.resume_case import STEPS, WARMUP, Job, differences, run

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
WRITERS = ((peft.peft_model, "safe_save_file"), (torch, "save"), (TrainerState, "save_to_json"))


class KillWhileWriting(TrainerCallback):
    """Kills its process when half of one file of one step's checkpoint has been written."""

    def __init__(self, step: int, file: str) -> None:
        self.step, self.file = step, file

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            for owner, name in WRITERS:
                setattr(owner, name, self.killing(getattr(owner, name)))

    def killing(self, write: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(write)
        def patched(what: Any, where: str, *rest: Any, **options: Any) -> None:
            write(what, where, *rest, **options)
            if (path := Path(where)).name == self.file:
                content = path.read_bytes()
                path.write_bytes(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)

        return patched


class KillInStep(TrainerCallback):
    """Kills its process between the gradients and the optimizer's step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def add(callback: TrainerCallback, trainer: Trainer) -> None:
    trainer.add_callback(callback)


CUT = {"rule": "spectrum", "average_rank": 1}


def test_killed_while_each_file_of_a_checkpoint_is_written(job: Job, tmp_path: Path) -> None:
    job = job.replace(config=CUT)
    whole = run(job.replace(output=tmp_path / "whole"))
    for step, file in enumerate(FILES, start=WARMUP - 2):  # before, at and after the reallocation
        kill = KillWhileWriting(step, file)
        run(job.replace(prepare=functools.partial(add, kill)), exit_code=-signal.SIGKILL)
        assert job.checkpoint(step).is_dir()
        last = last_complete_checkpoint(job.output)
        assert last == str(job.checkpoint(step - 1))
        job = job.replace(resume=last)
    assert not differences(whole, run(job))


def test_killed_at_random_steps(job: Job, tmp_path: Path) -> None:
    draw = random.Random(0)
    whole = run(job.replace(output=tmp_path / "whole"))
    job = job.replace(arguments=dict(save_steps=2))
    for _ in range(3):
        last = last_complete_checkpoint(job.output)
        done = int(last.rpartition("-")[2]) if last else 0
        kill = KillInStep(draw.randint(done + 1, min(done + 4, STEPS)))
        run(job.replace(resume=last, prepare=functools.partial(add, kill)), exit_code=-signal.SIGKILL)
    last = last_complete_checkpoint(job.output)
    assert last is not None
    assert not differences(whole, run(job.replace(resume=last)))
