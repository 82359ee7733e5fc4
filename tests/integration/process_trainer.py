"""A Trainer run in any number of processes with one global batch."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from integration.resume_case import Job, callback_of, make_trainer, outcome

GLOBAL_BATCH = 8


def together_as(job: Job) -> Job:
    """The job of one process among those of its group: on the same global batch, dropout off."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    accumulation = job.arguments.get("gradient_accumulation_steps", 1)
    arguments = dict(
        per_device_train_batch_size=GLOBAL_BATCH // size // accumulation,
        lr_scheduler_type="constant",
        accelerator_config={"use_configured_state": False},
        ddp_timeout=20,
    )
    return dataclasses.replace(job, arguments=arguments | job.arguments)


def train(job: Job) -> dict[str, Any]:
    trainer = make_trainer(together_as(job))
    for module in trainer.model.modules():  # dropout's masks are each process's own, which no comparison survives
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if job.prepare is not None:
        job.prepare(trainer)
    trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    return outcome(trainer) | {
        "ranks": callback_of(trainer).allocator.ranks,
        "wrapped": type(trainer.model_wrapped).__name__,
        "saved": sorted(path.name for path in job.output.glob("checkpoint-*/*")),
    }


class KillAtStep(TrainerCallback):
    """Kills the process of one rank before, at or after a step's update."""

    def __init__(self, rank: int, step: int, when: str) -> None:
        self.rank, self.step, self.when = rank, step, when

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self._strike("before", state.global_step + 1)

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        self._strike("after", state.global_step + 1)

    def _strike(self, when: str, step: int) -> None:
        if (dist.get_rank(), step, when) == (self.rank, self.step, self.when):
            os.kill(os.getpid(), signal.SIGKILL)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def second_call(trainer: Trainer) -> None:
    """A prepare that does nothing, so that a job can be told apart from others."""
