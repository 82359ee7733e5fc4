"""RankAllocationCallback: rank allocation in transformers.Trainer and TRL."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, is_initialized
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from glora.allocation.budget import check_start
from glora.allocator import RankAllocator
from glora.checkpoints import PROMISED, write_checksums
from glora.config import CUT_WARMUP, ONE_EPOCH_WARMUP, RankAllocationConfig, as_config
from glora.distributed.unsupported import check_engine
from glora.export import save_allocation, save_with
from glora.guards.saved_state import check_saved_state, check_trainer_state
from glora.guards.setup import check_loaded_adapter, check_same_matrices
from glora.guards.training_loop import describe_unfinished
from glora.lora.adapter import RankedAdapter
from glora.lora.following import Following, follow_loading, following, stop_following
from glora.lora.input_gradients import asked_by_last_call
from glora.messages import get_logger, pluralize
from glora.paths import regular_file
from glora.scoring.sketch_ratios import check_not_compiled

logger = get_logger()


class RankAllocationCallback(TrainerCallback, ExportableState):  # type: ignore[misc]  # transformers is untyped
    """Allocate LoRA's ranks during a Trainer run.

        callback = RankAllocationCallback(rule="spectrum", average_rank=8)
        trainer = Trainer(model=get_peft_model(base, LoraConfig(r=32)), ..., callbacks=[callback])

    `on_pre_optimizer_step` reads the norms: accumulated, reduced, unscaled and clipped, as the optimizer will use them.
    (Clipping multiplies all gradients of a step by one factor, so it keeps the shares and lowers the weight of the step.)

    Checkpoints hold the allocation, in trainer_state.json. `train(resume_from_checkpoint=...)` continues from it, and
    `load_best_model_at_end` works across the reallocation. To resume after the reallocation, give the callback to
    `Trainer(callbacks=[...])`, since Trainer loads a checkpoint before any event of training.

    Args:
        config: A RankAllocationConfig, or its fields as a dictionary.
        **fields: The fields of RankAllocationConfig, in place of `config`.

    Attributes:
        config: The configuration.
        allocator: The RankAllocator of the present or last training run; None before the first.
        allocator_class: Its class; a subclass of the callback may name a subclass of RankAllocator.

    Raises:
        ValueError: at the start of training, for everything that RankAllocator rejects, for a warm-up that is not shorter
            than the training, and for DeepSpeed, FSDP1 and DataParallel.
        TypeError: at once, for a config of another type, or an unknown field.
    """

    allocator_class: type[RankAllocator] = RankAllocator

    def __init__(self, config: RankAllocationConfig | Mapping[str, Any] | None = None, **fields: Any) -> None:
        if config is not None and fields:
            raise TypeError(f"give config, or the fields {', '.join(fields)}, not both")
        self.config = as_config(fields if config is None else config)
        self.allocator: RankAllocator | None = None
        self._following: Following | None = None
        self._training_batch: int | None = None

    def __repr__(self) -> str:
        """Return one line: the settings that are not the defaults."""
        given = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        shown = (f"{name}={value!r}" for name, value in given.items() if value != getattr(RankAllocationConfig, name))
        return f"{type(self).__name__}({', '.join(shown)})"

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Let checkpoints of other ranks be loaded from now on."""
        try:
            adapter = self._follow(model, optimizer).adapter
            if type(args).__module__.startswith("trl."):
                adapter.input_hooks -= asked_by_last_call(adapter.root)  # TRL's, for checkpointing
        except ValueError:
            # on_train_begin reports what is wrong with the model; it may still be changed until then
            self._following = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train_dataloader: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Start a warm-up with a new allocator, or continue where the checkpoint was taken."""
        _check_not_data_parallel(args)
        _check_only_callback(state, self)
        check_engine(model, optimizer)
        if args.restore_callback_states_from_checkpoint and state.global_step > 0:
            self._check_same_config(model)
        followed = self._follow(model, optimizer)
        followed.take_out_empty()  # the optimizer is made
        adapter = followed.adapter
        if self.config.signal == "delta_exact" and not self.config.cuts:
            check_not_compiled(adapter.root, will_be=args.torch_compile)
        saved = _saved_state(state, type(self).__name__)
        if saved is None or isinstance(self.config.warmup_steps, int):
            warmup = _warmup_steps(self.config, args, state, train_dataloader, fresh=saved is None)
        else:  # a share, or an epoch, of the training that made the checkpoint: this one may be longer
            warmup = saved["config"]["warmup_steps"]
        if saved is not None:
            _check_loaded(saved, adapter)
        elif state.global_step > 0 and self._training_batch is None:
            check_loaded_adapter(adapter, followed.loaded)
        if self.allocator is not None:
            self.allocator.detach()
        if self._ran_out_of_memory(args, state) and saved is None and adapter.ranks != adapter.initial_ranks:
            # Trainer starts again on the model as it is. After Ctrl-C, what was learned and allocated stays
            adapter.set_ranks(adapter.initial_ranks, optimizer=optimizer)
        self.allocator = self.allocator_class(adapter, optimizer, dataclasses.replace(self.config, warmup_steps=warmup))
        save_with(self.allocator)
        self.allocator.warm_up.finish()  # on_train_end reports a warm-up that was not finished
        if saved is not None:
            self.allocator.load_state_dict(saved)
        else:
            check_start(self.config, adapter)
        if state.global_step > 0 and not optimizer.state and getattr(lr_scheduler, "last_epoch", 1) == 0:
            logger.warning(
                "the checkpoint of step %d has no optimizer and no scheduler state, so both start again; it was made with "
                "save_only_model=True or cut off: glora.last_complete_checkpoint finds a complete one",
                state.global_step,
            )
        if 0 < state.max_steps <= state.global_step:
            logger.warning(
                "the checkpoint is of step %d of %d: this run has ended, and within an epoch Trainer trains one more step; "
                "call train() only while steps are left",
                state.global_step,
                state.max_steps,
            )
        self._training_batch = state.train_batch_size
        # Trainer saves the state of a callback under a name that a checkpoint made without the callback does not have
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def take_ranks_from(self, checkpoint: str | Path) -> None:
        """Give the model a checkpoint's ranks before Trainer shards it with FSDP2; Trainer loads the weights only afterwards.

            trainer = Trainer(model, ..., callbacks=[callback])
            callback.take_ranks_from(checkpoint)
            trainer.train(resume_from_checkpoint=checkpoint)

        Without FSDP2 the ranks follow the weights that are loaded, and this changes nothing.

        Args:
            checkpoint: The folder to resume from.

        Raises:
            ValueError: there is no Trainer yet, or the checkpoint is damaged, has no state of this callback or is of another
                model.
        """
        if self._following is None:
            raise ValueError("take_ranks_from needs a model; give this callback to Trainer(callbacks=[...]) first")
        file = Path(checkpoint) / "trainer_state.json"
        try:
            state = TrainerState.load_from_json(str(regular_file(file)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{file} cannot be read ({type(error).__name__}); take the checkpoint that glora.last_complete_checkpoint finds"
            ) from error
        saved = _saved_state(state, type(self).__name__)
        if saved is None:
            raise ValueError(
                f"{checkpoint} was made without {type(self).__name__}, so it has no ranks; use another checkpoint"
            )
        check_same_matrices(saved["ranks"], self._following.adapter)
        # under FSDP2 the model must have its final modules when it is sharded; its optimizer knows parameters by name
        self._following.take_ranks(saved["ranks"], keep_places=not _shards())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read this step's gradient norms."""
        if self.allocator is not None:
            self.allocator.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write allocation.json, a section of the model card, and checksums of the checkpoint's files."""
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        # each trial of hyperparameter_search has another folder, which Trainer does not pass: take the one just written
        pattern = f"*/{name}" if state.is_hyper_param_search else name
        checkpoints = sorted(Path(args.output_dir).glob(pattern), key=lambda path: path.stat().st_mtime)
        if self.allocator is not None and state.is_world_process_zero and checkpoints:
            save_allocation(self.allocator, checkpoints[-1])
            write_checksums(checkpoints[-1], others_write="rng_state_*.pth")  # each process writes its own

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write allocation.json into the folder that goes to the hub; Trainer copies only the adapter there."""
        if self.allocator is not None and state.is_world_process_zero and Path(args.output_dir).is_dir():
            save_allocation(self.allocator, args.output_dir)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Warn if training ended before the warm-up, or the last cut."""
        self._training_batch = None
        if (allocator := self.allocator) is not None:
            if unfinished := describe_unfinished(allocator.config, allocator.steps):
                skipped = allocator.describe_skipped()
                logger.warning("%s%s", unfinished, skipped and f": {skipped}")
            allocator.detach()

    def state(self) -> dict[str, Any]:
        """Return what Trainer writes into a checkpoint's trainer_state.json."""
        saved = self.allocator.state_dict() if self.allocator is not None else None
        attributes = {"saved_state": saved, PROMISED: saved is not None}
        return {"args": {"config": self.config.to_dict()}, "attributes": attributes}

    def _ran_out_of_memory(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Return whether Trainer starts again with a smaller batch (auto_find_batch_size) in a training that did not end."""
        last, now = self._training_batch, state.train_batch_size
        return bool(args.auto_find_batch_size) and last is not None and now is not None and now < last

    def _follow(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Following:
        """Let the ranks of this model's adapter follow what is loaded; hyperparameter_search makes new models."""
        name = self.config.adapter_name
        # Trainer may have replaced the callback that followed the loading by this one (restore_callback_states_from_...)
        known = [one.adapter for one in (self._following, following(model)) if one is not None]
        adapter = next((one for one in known if one.describes(model, name)), None) or RankedAdapter(model, name)
        for other in known:
            if other is not adapter:
                stop_following(other)
        self._following = follow_loading(adapter, optimizer, asked_by=self.config)
        return self._following

    def _check_same_config(self, model: nn.Module) -> None:
        """Compare with the callback that the user gave, which the adapter knows: Trainer made this one from the checkpoint."""
        given = getattr(following(model), "asked_by", None)
        if isinstance(given, RankAllocationConfig) and (differing := given.differences(self.config.to_dict())):
            raise ValueError(
                f"restore_callback_states_from_checkpoint=True replaces your configuration by the checkpoint's: {differing}. "
                "Use the old values, or start again"
            )


def _saved_state(state: TrainerState, name: str) -> dict[str, Any] | None:
    """Return the allocator's state in the checkpoint that Trainer resumes from, if there is one.

    Trainer itself restores callbacks only with restore_callback_states_from_checkpoint=True, and then into a new object.
    """
    check_trainer_state(state)
    if state.global_step == 0:
        return None
    found = {
        other: saved
        for other, entry in state.stateful_callbacks.items()
        if isinstance(entry, Mapping)
        and isinstance(attributes := entry.get("attributes"), Mapping)
        and (saved := attributes.get("saved_state")) is not None
    }
    if name in found:
        check_saved_state(found[name])
        if (steps := found[name]["steps"]) > state.global_step:
            raise ValueError(
                f"the allocator's state has {steps:,} steps, and the checkpoint {state.global_step:,}; resume from another one"
            )
    elif others := [other for other, saved in found.items() if isinstance(saved, Mapping) and "initial_ranks" in saved]:
        raise ValueError(
            f"the checkpoint holds the allocation of {others[0]}; resume with that callback, not with {name}, which would "
            "start another warm-up"
        )
    return dict(found[name]) if name in found else None


def _check_loaded(saved: Mapping[str, Any], adapter: RankedAdapter) -> None:
    if saved["ranks"].keys() == adapter.ranks.keys() and saved["ranks"] != adapter.ranks:
        raise ValueError(
            "the weights do not have the ranks in the checkpoint's trainer_state.json. After running out of memory "
            "(auto_find_batch_size), resume in a new process with a smaller batch; otherwise the checkpoint mixes two: use "
            "glora.last_complete_checkpoint"
        )


def _warmup_steps(
    config: RankAllocationConfig, args: TrainingArguments, state: TrainerState, train_dataloader: Any, *, fresh: bool
) -> int:
    left, epoch = state.max_steps - (state.global_step if fresh else 0), _epoch(args, train_dataloader)
    steps = config.warmup_of(state.max_steps, epoch)
    if steps >= left:
        share = CUT_WARMUP if config.cuts else ONE_EPOCH_WARMUP
        raise ValueError(
            f"the warm-up (warmup_steps={config.warmup_steps}, {pluralize(steps, 'step')}) must be shorter than training "
            f"({pluralize(left, 'step')}); {f'set for example warmup_steps={share:g}, or ' if left > 1 else ''}train longer"
        )
    if (last := config.last_cut(steps)) >= left:
        raise ValueError(
            f"the last of {config.max_reallocations} cuts would come after {pluralize(last, 'step')}, and training has "
            f"{left:,}; lower reallocate_every={config.reallocate_every}, or max_reallocations"
        )
    if config.warmup_steps is None and not config.cuts and steps != epoch:
        logger.info(
            "training has no second epoch, so its first %s are the warm-up; set warmup_steps for another",
            pluralize(steps, "step"),
        )
    return steps


def _epoch(args: TrainingArguments, train_dataloader: Any) -> int | None:
    """Return the optimizer steps of an epoch; None where the data set has no length."""
    try:
        return max(math.ceil(len(train_dataloader) / int(args.gradient_accumulation_steps)), 1)
    except TypeError:
        return None


def _check_only_callback(state: TrainerState, callback: RankAllocationCallback) -> None:
    """Check that there is no second callback. Both get the same state of Trainer, which is the only thing that they share."""
    first = vars(state).setdefault("_rank_allocation_callback", callback)
    if first is not callback:
        raise ValueError(
            f"Trainer has two callbacks that allocate ranks, {type(first).__name__} and {type(callback).__name__}; give one. "
            "Train two adapters one after the other"
        )


def _shards() -> bool:
    """Return whether accelerate is going to shard the model."""
    return is_initialized() and getattr(AcceleratorState(), "fsdp_plugin", None) is not None


def _check_not_data_parallel(args: TrainingArguments) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"Trainer would use DataParallel on {args.n_gpu} GPUs, which glora does not support; start one process for each "
            f"GPU (torchrun --nproc_per_node={args.n_gpu}, or accelerate launch), or set CUDA_VISIBLE_DEVICES=0"
        )
