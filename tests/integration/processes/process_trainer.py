"""A Trainer run in any number of processes with one global batch, in DistributedDataParallel or under FSDP2."""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer, TrainerCallback

from integration.training.resume_case import WARMUP, Job, make_trainer, outcome
from integration.training.trainer_case import callback_of

GLOBAL_BATCH = 8


class ShardingTrainer(Trainer):
    """FSDP2 as accelerate does it. accelerate supports FSDP on a GPU only, so its state is changed after it was made."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["DebertaV2Layer"],
            cpu_ram_efficient_loading=False,
            state_dict_type="FULL_STATE_DICT",
        )
        state = self.accelerator.state
        for of in (state.__dict__, state._shared_state):
            of |= {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True


def _arguments(job: Job) -> dict[str, Any]:
    """The same global batch in any number of processes."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    accumulation = job.arguments.get("gradient_accumulation_steps", 1)
    return dict(per_device_train_batch_size=GLOBAL_BATCH // size // accumulation, ddp_timeout=20)


def make(job: Job) -> Trainer:
    trainer = make_trainer(job.replace(arguments=_arguments(job) | job.arguments))
    # DeBERTa's forward() takes any argument, so Trainer believes that it divides its loss by the number of items itself
    trainer.model_accepts_loss_kwargs = False
    for module in trainer.model.modules():  # the masks are each process's own
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return trainer


def train(job: Job) -> dict[str, Any]:
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("glora").addHandler(handler)
    trainer = make(job)
    if job.prepare is not None:
        job.prepare(trainer)
    trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    result = outcome(trainer) | {"heard": heard, "wrapped": type(trainer.model_wrapped).__name__}
    logging.getLogger("glora").removeHandler(handler)
    return result


def train_sharded(job: Job) -> dict[str, Any]:
    """Under FSDP2; the weights that are returned are whole."""
    trainer = make(job.replace(trainer_class=ShardingTrainer))
    if job.resume is not None:
        callback_of(trainer).take_ranks_from(job.resume)
    trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    weights = {name: p.full_tensor().detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.save_model(str(job.output / "saved"))
    return {
        "weights": weights,
        "allocation": callback_of(trainer).allocator.state_dict(),
        "wrapped": type(trainer.model_wrapped).__name__,
    }


class KillAfter(TrainerCallback):
    """Kills the process of one rank when a step has been made, and its checkpoint not yet been written."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        if (dist.get_rank(), state.global_step + 1) == (self.rank, self.step):
            os.kill(os.getpid(), signal.SIGKILL)


def kill_the_second_at_the_reallocation(trainer: Trainer) -> None:
    trainer.add_callback(KillAfter(1, WARMUP))


class Worse(TrainerCallback):
    """Makes the first evaluation the best."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        metrics["eval_loss"] = float(state.global_step)


def train_twice(job: Job) -> dict[str, Any]:
    """The best model at the end has the ranks of the beginning; the second training goes on under the same wrapper."""
    trainer = make(job)
    trainer.add_callback(Worse())
    trainer.train()
    wrapper = trainer.model_wrapped
    first = callback_of(trainer).allocator
    assert first.allocated
    assert len(set(first.ranks.values())) == 1, "those of the best model"
    trainer.args.load_best_model_at_end = False
    trainer.train()
    assert trainer.model_wrapped is wrapper
    return outcome(trainer)
