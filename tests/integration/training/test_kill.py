"""SIGKILL at any moment, also while a checkpoint is being written: the run goes on and ends with the same bits."""

from __future__ import annotations

import dataclasses
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


def kill_while_writing(trainer: Trainer, step: int, file: str) -> None:
    trainer.add_callback(KillWhileWriting(step, file))


class KillInStep(TrainerCallback):
    """Kills its process between the gradients and the optimizer's step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(trainer: Trainer, step: int) -> None:
    trainer.add_callback(KillInStep(step))


CUT = {"rule": "spectrum", "average_rank": 1}


def test_killed_while_each_file_of_a_checkpoint_is_written(
    tiny_deberta: Path, glue_folder: Path, tmp_path: Path
) -> None:
    whole = run(Job(tiny_deberta, glue_folder, tmp_path / "whole", config=CUT))
    job = Job(tiny_deberta, glue_folder, tmp_path / "killed", config=CUT)
    for step, file in enumerate(FILES, start=WARMUP - 2):  # before, at and after the reallocation
        kill = functools.partial(kill_while_writing, step=step, file=file)
        run(dataclasses.replace(job, prepare=kill), exit_code=-signal.SIGKILL)
        assert job.checkpoint(step).is_dir()
        last = last_complete_checkpoint(job.output)
        assert last == str(job.checkpoint(step - 1))
        job = dataclasses.replace(job, resume=last)
    assert not differences(whole, run(job))


def test_killed_at_random_steps(tiny_deberta: Path, glue_folder: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    whole = run(Job(tiny_deberta, glue_folder, tmp_path / "whole"))
    job = Job(tiny_deberta, glue_folder, tmp_path / "killed", arguments=dict(save_steps=2))
    for _ in range(3):
        last = last_complete_checkpoint(job.output)
        done = int(last.rpartition("-")[2]) if last else 0
        kill = functools.partial(kill_in_step, step=draw.randint(done + 1, min(done + 4, STEPS)))
        run(dataclasses.replace(job, resume=last, prepare=kill), exit_code=-signal.SIGKILL)
    last = last_complete_checkpoint(job.output)
    assert last is not None
    assert not differences(whole, run(dataclasses.replace(job, resume=last)))
