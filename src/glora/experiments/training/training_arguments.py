"""What transformers' Trainer is told for one run, the same for every kind of task and every method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glora.experiments.training.reporting import reporting_arguments

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from glora.experiments.config import RunConfig

DATA_SEED_STRIDE = 10_007
"""accelerate orders epoch e by seed + e, so neighbouring seeds would see each other's orders one epoch later."""


def training_arguments(
    config: RunConfig, scratch: Path, arguments_class: type[TrainingArguments], **others: Any
) -> TrainingArguments:
    """The arguments of one run.

    Args:
        config: the run's settings.
        scratch: a folder for whatever Trainer must write.
        arguments_class: `TrainingArguments` or a class of TRL's that derives from it.
        others: what only this class has, or what the kind of task needs otherwise.
    """
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    arguments = arguments_class(
        **{
            "output_dir": str(scratch),
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
    # batch_size is examples per optimiser step; Trainer would multiply it by the number of GPUs in the machine.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _order(config: RunConfig, arguments_class: type[TrainingArguments]) -> dict[str, Any]:
    """Nothing where batches are drawn at random, Trainer's default; the option has changed its name within transformers 5."""
    if not config.group_by_length:
        return {}
    named = "train_sampling_strategy" in {field.name for field in dataclasses.fields(arguments_class)}
    return {"train_sampling_strategy": "group_by_length"} if named else {"group_by_length": True}
