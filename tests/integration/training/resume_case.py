"""A training run that can be stopped and resumed, each time in a new process."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import Trainer

from glora import RankAllocationCallback
from integration.training.trainer_case import base_model, callback_of, lora_config
from integration.training.trainer_case import make_trainer as trainer_of
from new_process import fork

WARMUP, STEPS = 4, 9  # an epoch is 6 steps, so the reallocation and its checkpoint lie inside the first


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of Trainer.train()."""

    base: Path
    data: Path
    output: Path
    resume: Path | None = None
    config: dict[str, Any] | None = dataclasses.field(default_factory=dict)  # None: no callback
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    custom_optimizer: bool = False
    trainer_class: type[Trainer] = Trainer
    prepare: Callable[[Trainer], None] | None = None  # a module-level function: what goes wrong in this process

    @property
    def result(self) -> Path:
        return self.output / "result.pt"

    def replace(self, **fields: Any) -> Job:
        return dataclasses.replace(self, **fields)

    def checkpoint(self, step: int) -> Path:
        return self.output / f"checkpoint-{step}"


def make_trainer(job: Job) -> Trainer:
    """Dropout in the model and in LoRA, weight decay in one of two parameter groups, a head that is trained as well."""
    base = base_model(job.base, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    model = get_peft_model(base, lora_config(lora_dropout=0.1))
    settings = dict(
        weight_decay=0.1,
        warmup_steps=2,
        per_device_train_batch_size=8,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        logging_steps=1,
    )
    callbacks = [] if job.config is None else [RankAllocationCallback(dict(warmup_steps=WARMUP) | job.config)]
    optimizers = _optimizer_by_factor(model) if job.custom_optimizer else (None, None)
    return trainer_of(
        model,
        job.base,
        job.data,
        job.output,
        callbacks,
        examples=(48, 16),
        optimizers=optimizers,
        trainer_class=job.trainer_class,
        **settings | job.arguments,
    )


def _optimizer_by_factor(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, Any]:
    """LoRA+: B learns faster than A. Made before Trainer loads anything."""
    groups: dict[str, list[torch.nn.Parameter]] = {"lora_A": [], "lora_B": [], "": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[next(key for key in groups if key in name)].append(parameter)
    rates = {"lora_A": 2e-3, "lora_B": 8e-3, "": 5e-3}
    optimizer = torch.optim.AdamW([{"params": parameters, "lr": rates[key]} for key, parameters in groups.items()])
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)


def train(job: Job) -> None:
    """Train to the end and write down all that a user could compare."""
    trainer = make_trainer(job)
    if job.prepare is not None:
        job.prepare(trainer)
    trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    torch.save(outcome(trainer), job.result)


def outcome(trainer: Trainer) -> dict[str, Any]:
    model = trainer.model
    result = {
        "weights": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "allocation": callback_of(trainer).allocator.state_dict(),
        "peft_config": {k: v for k, v in model.peft_config["default"].to_dict().items() if "pattern" in k or k == "r"},
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "random": torch.get_rng_state(),
    }
    return copy.deepcopy(result)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the places in which two results differ by a bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, dict):
        if not isinstance(other, dict) or list(map(str, one)) != list(map(str, other)):
            return [f"{path}: {list(one)} and {list(other) if isinstance(other, dict) else other}"]
        return [d for key in one for d in differences(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list | tuple):
        if not isinstance(other, list | tuple) or len(one) != len(other):
            return [f"{path}: another length"]
        return [d for i, pair in enumerate(zip(one, other)) for d in differences(*pair, f"{path}[{i}]")]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]


def start(job: Job) -> BaseProcess:
    """Begin a job in a new process."""
    job.output.mkdir(parents=True, exist_ok=True)
    return fork(train, job)


def run(job: Job, *, exit_code: int = 0) -> dict[str, Any]:
    """Do a job in a new process and return what it wrote down."""
    process = start(job)
    process.join(120)
    assert process.exitcode == exit_code, f"ended with {process.exitcode}"
    return torch.load(job.result) if exit_code == 0 else {}
