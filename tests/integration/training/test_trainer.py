"""The one line that users add to a Trainer run, and what it must leave alone."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import AdaLoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Trainer, TrainerCallback

from glora import RankAllocationCallback
from integration.training.trainer_case import base_model, callback_of, peft_model


class Watch(TrainerCallback):
    """Notes what the schedule and the optimizer look like at each step."""

    def __init__(self) -> None:
        self.learning_rates: list[float] = []
        self.groups: list[int] = []

    def on_optimizer_step(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs) -> None:
        self.learning_rates.append(lr_scheduler.get_last_lr()[0])
        self.groups.append(len(optimizer.param_groups))


def test_one_line_reallocates_after_one_epoch(trainer_of, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="glora")
    callback, watch, plain_watch = RankAllocationCallback(), Watch(), Watch()
    trainer = trainer_of(callback, watch)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()

    allocator = callback.allocator
    assert allocator.allocated
    assert allocator.reallocation.step == 12, "192 examples in batches of 16"
    assert sum(allocator.ranks.values()) == 12 * 4
    assert len(set(allocator.ranks.values())) > 2
    assert "step 12:" in caplog.text
    assert after["eval_loss"] < before["eval_loss"] - 0.01

    plain = trainer_of(plain_watch)
    plain.train()
    assert vars(watch) == vars(plain_watch), "the schedule must not notice"
    losses, plain_losses = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (trainer, plain))
    assert losses[:3] == plain_losses[:3], "until the reallocation GLoRA is LoRA, to the last bit"
    assert losses[3:] != plain_losses[3:]


def test_accumulated_micro_batches_give_the_norms_of_the_whole_batch(trainer_of) -> None:
    norms = []
    for size, steps in ((16, 1), (4, 4)):
        callback = RankAllocationCallback(warmup_steps=5)
        trainer = trainer_of(callback, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=6)
        # transformers 5.23 takes this model's **kwargs for a loss normalised over the whole batch, which it is not, and
        # would add the micro-batches' means instead of averaging them
        trainer.model_accepts_loss_kwargs = False
        trainer.train()
        assert callback.allocator.steps == 5
        norms.append(callback.allocator.norms)
    assert norms[0] == pytest.approx(norms[1], rel=2e-3)


def test_the_callback_can_be_used_again(trainer_of) -> None:
    callback = RankAllocationCallback(warmup_steps=3)
    ranks = []
    for _ in range(2):
        trainer = trainer_of(callback, max_steps=5)
        trainer.train()
        ranks.append(callback.allocator.ranks)
        assert not trainer.optimizer.optimizer._optimizer_step_post_hooks
    assert ranks[0] == ranks[1]


def test_too_long_a_warmup_is_refused_before_the_first_step(trainer_of) -> None:
    trainer = trainer_of(RankAllocationCallback(warmup_steps=24), num_train_epochs=2)
    with pytest.raises(ValueError, match=r"warmup_steps=24, 24 steps\).*\(24 steps\); .*train longer"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_training_that_ends_early_says_that_it_was_plain_lora(trainer_of, caplog: pytest.LogCaptureFixture) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            control.should_training_stop = state.global_step == 3

    trainer_of(RankAllocationCallback(), Stop()).train()
    assert re.search("3 of 12 warm-up steps: .*plain LoRA", caplog.text)


def test_another_tuner_is_refused(trainer_of, tiny_deberta: Path) -> None:
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=24, target_modules=["query_proj"], task_type="SEQ_CLS")
    with pytest.raises(ValueError, match="ADALORA"):
        trainer_of(RankAllocationCallback(), model=get_peft_model(base_model(tiny_deberta), config)).train()


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield {"input_ids": [5, 6, 7], "labels": 1}


@pytest.mark.parametrize(
    ("fields", "epochs", "step"),
    [({}, 2, 12), ({}, 1, 2), ({"rule": "spectrum", "average_rank": 1}, 2, 6), ({"warmup_steps": 0.2}, 1, 3)],
    ids=["one of two epochs", "a tenth of one epoch", "a quarter for a cut", "a share"],
)
def test_the_default_warmup(trainer_of, fields: dict, epochs: int, step: int) -> None:
    trainer = trainer_of(RankAllocationCallback(**fields), num_train_epochs=epochs)
    trainer.train()
    assert callback_of(trainer).allocator.reallocation.step == step


def test_a_cut_that_training_would_not_reach_is_refused(trainer_of) -> None:
    fields = dict(rule="spectrum", average_rank=1, warmup_steps=4, reallocate_every=50, max_reallocations=3)
    with pytest.raises(ValueError, match=r"3 cuts .* 104 steps.*lower reallocate_every=50"):
        trainer_of(RankAllocationCallback(**fields), num_train_epochs=1).train()


def test_a_second_training_of_a_cut_adapter_is_an_error(trainer_of) -> None:
    trainer = trainer_of(RankAllocationCallback(rule="spectrum", average_rank=1), num_train_epochs=1)
    trainer.train()
    with pytest.raises(ValueError, match=r"rule='spectrum'.* r=\d+.*LoraConfig\(r="):
        trainer.train()


def test_a_stream_has_no_epoch(trainer_of) -> None:
    def trainer(**fields: object) -> Trainer:
        made = trainer_of(RankAllocationCallback(**fields), max_steps=4)
        made.train_dataset = Stream()
        return made

    for fields, step in (({}, 1), ({"warmup_steps": 0.6}, 3)):  # rounded up
        made = trainer(**fields)
        made.train()
        assert callback_of(made).allocator.reallocation.step == step


class DeepSpeedOptimizerWrapper(AcceleratedOptimizer):
    """By its name, as accelerate/utils/deepspeed.py has it."""


def test_engines_that_leave_nothing_to_allocate_are_refused(trainer_of, tiny_deberta: Path) -> None:
    callback = RankAllocationCallback()
    trainer = trainer_of(callback)
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad])
    trainer.state.max_steps = 24

    def begin(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        arguments = (trainer.args, trainer.state, trainer.control)
        callback.on_train_begin(*arguments, model=model, optimizer=optimizer, train_dataloader=range(12))

    with pytest.raises(ValueError, match=r"DeepSpeed .*FSDP2 \(fully_shard\)"):
        begin(trainer.model, DeepSpeedOptimizerWrapper(optimizer))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        sharded = FullyShardedDataParallel(
            peft_model(tiny_deberta), use_orig_params=True, device_id=torch.device("cpu")
        )
        with pytest.raises(ValueError, match=r"\(FSDP1\) .*fsdp_version: 2"):
            begin(sharded, optimizer)
    finally:
        torch.distributed.destroy_process_group()
    object.__setattr__(trainer.args, "_n_gpu", 2)  # what Trainer finds on a machine that has two
    with pytest.raises(ValueError, match=r"DataParallel.*torchrun --nproc_per_node=2"):
        begin(trainer.model, optimizer)
    assert not optimizer._optimizer_step_post_hooks
