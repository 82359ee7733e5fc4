"""Trainer's arguments and the training batches of one run, the same for every kind of task and every method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from glora.experiments.config import RunConfig
from glora.experiments.training.reporting import reporting_arguments
from glora.messages import did_you_mean

DATA_SEED_STRIDE = 10_007
"""accelerate orders epoch e by seed + e, so neighboring seeds would see each other's orders one epoch later."""


def training_arguments(
    config: RunConfig, folder: Path, arguments_class: type[TrainingArguments], **others: Any
) -> TrainingArguments:
    """Return the arguments of one run.

    Args:
        config: the run's settings.
        folder: where Trainer writes its files.
        arguments_class: `TrainingArguments` or a class of TRL's that derives from it.
        others: arguments that only this class has, or that the kind of task needs.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    arguments = arguments_class(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": config.batch_size,
            "per_device_eval_batch_size": 2 * config.batch_size,
            "num_train_epochs": config.epochs,
            "learning_rate": config.learning_rate,
            "lr_scheduler_type": config.lr_scheduler,
            "warmup_steps": config.lr_warmup,
            "weight_decay": config.weight_decay,
            "bf16": config.precision == "bfloat16",
            "use_cpu": on_cpu,
            "dataloader_pin_memory": not on_cpu,
            "seed": config.seed,
            "data_seed": config.seed * DATA_SEED_STRIDE,
            **_order(config, arguments_class),
            "eval_strategy": "epoch",
            "logging_nan_inf_filter": False,  # the filter would hide from the recorder that training has diverged
            "save_strategy": "no",
            "disable_tqdm": True,
            **reporting_arguments(config),
            **others,
        }
    )
    # batch_size is examples per optimizer step; Trainer would multiply it by the number of GPUs in the machine.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def unsupported_scheduler(config: RunConfig) -> list[str]:
    """Return an error if the learning-rate schedule is unknown, or needs arguments that a run does not give it."""
    name, working = config.lr_scheduler, [each.value for each in SchedulerType if _schedules(each.value, 2e-4)]
    if name in working and _schedules(name, config.learning_rate):
        return []
    known = name in [each.value for each in SchedulerType]
    reason = "needs arguments that a run does not give" if known else f"is unknown{did_you_mean(name, working)}"
    if name in working:
        reason = f"does not work with learning_rate={config.learning_rate:g}"
    return [f"lr_scheduler={name!r} {reason}; choose one of {', '.join(working)}"]


def _schedules(name: str, learning_rate: float) -> bool:
    """Return whether a schedule can be made and followed as Trainer does."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    try:
        schedule = get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=4)
        optimizer.step()
        schedule.step()
    except (TypeError, ValueError):
        return False
    return True


def _order(config: RunConfig, arguments_class: type[TrainingArguments]) -> dict[str, Any]:
    """Nothing for random batches, Trainer's default; the option changed its name within transformers 5."""
    if not config.group_by_length:
        return {}
    named = "train_sampling_strategy" in {field.name for field in dataclasses.fields(arguments_class)}
    return {"train_sampling_strategy": "group_by_length"} if named else {"group_by_length": True}


def training_batches(
    rows: Any, collate: Callable[[list[Any]], Any], batch_size: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield whole batches without end, each pass in another order, for a method that reads some before training.

    The order comes from a separate generator: a DataLoader without one seeds itself from the global generator, which would
    change the training that follows.

    Args:
        rows: the training data, indexed by integers.
        collate: makes a batch of rows, as Trainer's `data_collator`.
        batch_size: examples per batch; fewer where the data has fewer.
        seed: of the order.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = max(1, len(rows) - batch_size + 1)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, whole, batch_size):
            yield dict(collate([rows[i] for i in order[start : start + batch_size]]))
