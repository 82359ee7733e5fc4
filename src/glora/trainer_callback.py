"""GLoRA in transformers.Trainer and TRL: one callback."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from glora._logging import get_logger
from glora.allocator import RankAllocator
from glora.configuration import RankAllocationConfig

logger = get_logger()


class RankAllocationCallback(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers is untyped
    """Allocates LoRA's ranks during a Trainer run.

        trainer = Trainer(model=get_peft_model(base, LoraConfig(r=8)), ..., callbacks=[RankAllocationCallback()])

    The norms are read in `on_pre_optimizer_step`: accumulated, reduced, unscaled and clipped, as the optimiser will use
    them. (Clipping multiplies all gradients of one step by one factor: shares within a step stay, a clipped step weighs
    less.)

    Args:
        config: How to allocate, a RankAllocationConfig or its fields as a dictionary. With `warmup_steps=None` the
            warm-up is one epoch, with a float below 1 a share of all steps, rounded up.

    Attributes:
        allocator: The RankAllocator of the present or last training run; None before the first.
        allocator_class: What makes it; a subclass of the callback may name a subclass of RankAllocator.

    Raises:
        ValueError: at the start of training, for whatever RankAllocator refuses, for a warm-up that is not shorter than
            the training, and for DeepSpeed and FSDP.
    """

    allocator_class: type[RankAllocator] = RankAllocator

    def __init__(self, config: RankAllocationConfig | Mapping[str, Any] | None = None) -> None:
        self.config = (
            RankAllocationConfig(**config) if isinstance(config, Mapping) else config or RankAllocationConfig()
        )
        self.allocator: RankAllocator | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Start a warm-up, with a new allocator: the callback may be used for several training runs."""
        _refuse_engines(args)
        if model is None or optimizer is None:
            raise ValueError("RankAllocationCallback needs Trainer's model and optimizer in on_train_begin")
        warmup = _warmup_steps(self.config.warmup_steps, args, state, train_dataloader)
        if self.allocator is not None:
            self.allocator.detach()
        config = dataclasses.replace(self.config, warmup_steps=warmup)
        self.allocator = self.allocator_class(model, optimizer, config)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read this step's gradient norms."""
        if self.allocator is not None:
            self.allocator.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say so if training ended before the warm-up did."""
        allocator = self.allocator
        if allocator is None:
            return
        if allocator.steps < int(allocator.config.warmup_steps or 0):
            logger.warning(
                "training ended after %d of %s warm-up steps: the ranks were not reallocated, this is plain LoRA",
                allocator.steps,
                allocator.config.warmup_steps,
            )
        allocator.detach()

    def state(self) -> dict[str, Any]:
        """What Trainer writes into a checkpoint's trainer_state.json."""
        saved = self.allocator.state_dict() if self.allocator is not None else None
        return {"args": {"config": self.config.to_dict()}, "attributes": {"saved_state": saved}}


def _warmup_steps(
    asked: int | float | None, args: TrainingArguments, state: TrainerState, train_dataloader: Any
) -> int:
    if asked is None:
        try:
            batches = len(train_dataloader)
        except TypeError:
            raise ValueError(
                "warmup_steps=None means one epoch, but the length of an epoch is unknown for this data set (it has no "
                "len()); give RankAllocationConfig(warmup_steps=...) a number of steps, or a share below 1"
            ) from None
        steps = max(math.ceil(batches / int(args.gradient_accumulation_steps)), 1)
        meaning = "one epoch, "
    else:
        steps = math.ceil(asked * state.max_steps) if isinstance(asked, float) else asked
        meaning = f"{asked} of all steps, " if isinstance(asked, float) else ""
    if steps >= state.max_steps:
        raise ValueError(
            f"the warm-up ({meaning}{steps} steps) must be shorter than the training ({state.max_steps} steps), or the "
            "new ranks are never trained; lower it with RankAllocationConfig(warmup_steps=0.1), or train for longer"
        )
    return steps


def _refuse_engines(args: TrainingArguments) -> None:
    if getattr(args, "deepspeed", None):
        raise ValueError(
            "DeepSpeed steps and clears the gradients inside backward(), where no callback can see them; train in "
            "a single process, or take ranks from a separate run"
        )
    if getattr(args, "fsdp", None):
        raise ValueError("FSDP shards the adapter's matrices, which glora cannot resize; train in a single process")
    if args.n_gpu > 1:
        raise ValueError(
            f"Trainer would spread each batch over {args.n_gpu} GPUs with DataParallel, which glora does not support; "
            "make one visible with CUDA_VISIBLE_DEVICES=0"
        )
