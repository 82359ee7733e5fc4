"""Trainer's own switches, and what goes wrong in a training: the method works the same, or it is reported."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from glora import RankAllocationCallback
from integration.training.trainer_case import callback_of

WARMUP, STEPS = 4, 7


@pytest.fixture
def trainer_for(trainer_of):
    def make(*callbacks: TrainerCallback, config: dict | None = None, **arguments: object) -> Trainer:
        allocation = RankAllocationCallback(**dict(warmup_steps=WARMUP) | (config or {}))
        return trainer_of(allocation, *callbacks, **dict(max_steps=STEPS) | arguments)

    return make


def norms_at_the_end(trainer: Trainer) -> dict[str, float]:
    trainer.train()
    allocator = callback_of(trainer).allocator
    assert allocator.allocated
    assert sum(allocator.ranks.values()) == 12 * 4
    return allocator.norms


def test_gradient_checkpointing(trainer_for) -> None:
    plain = norms_at_the_end(trainer_for())
    for reentrant in (True, False):
        options = dict(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": reentrant})
        trainer = trainer_for(**options)
        calls: list[nn.Module] = []
        inner = trainer.model.base_model.model.deberta.encoder.layer[0].intermediate
        inner.register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
        assert norms_at_the_end(trainer) == pytest.approx(plain, rel=1e-4)
        assert len(calls) == 2 * STEPS, "each is computed twice"


def test_clipping(trainer_for, caplog: pytest.LogCaptureFixture) -> None:
    """Shares are those of the unclipped run where all steps are clipped alike; and it is not taken for a forgotten scale."""
    free, clipped = (trainer_for(max_grad_norm=norm, config=dict(beta=0.0), learning_rate=0.0) for norm in (0.0, 1e-3))
    norms = norms_at_the_end(free)
    total = sum(norms.values())
    after = norms_at_the_end(clipped)
    assert sum(after.values()) < 0.1 * total
    for name, norm in after.items():
        assert norm / sum(after.values()) == pytest.approx(norms[name] / total, rel=1e-4)
    assert "gradients changed" not in caplog.text


def test_bfloat16_autocast(trainer_for) -> None:
    assert norms_at_the_end(trainer_for(bf16=True)) == pytest.approx(norms_at_the_end(trainer_for()), rel=0.15)


@pytest.mark.slow
def test_torch_compile(trainer_for) -> None:
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    counts: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            counts.append(graphs["unique_graphs"])

    config = dict(signal="lora_b")  # compiled code calls no hooks
    options = dict(torch_compile=True, torch_compile_backend="eager", dataloader_drop_last=True)
    norms = norms_at_the_end(trainer_for(Count(), config=config, **options))
    assert norms == pytest.approx(norms_at_the_end(trainer_for(config=config)), rel=1e-3)
    assert counts[WARMUP - 1] < counts[WARMUP] <= 2 * counts[WARMUP - 1], "new shapes are compiled once"
    assert counts[WARMUP:] == [counts[WARMUP]] * (STEPS - WARMUP)


def test_torch_compile_with_the_exact_signal_is_refused(trainer_for) -> None:
    trainer = trainer_for(config=dict(signal="delta_exact"), torch_compile=True, torch_compile_backend="eager")
    with pytest.raises(ValueError, match='signal="delta".*torch.compile'):
        trainer.train()


# trouble


class Overflow(TrainerCallback):
    """Lets the loss of some steps be infinite."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        self.handle = None
        if state.global_step + 1 in self.steps:
            self.handle = model.base_model.model.classifier.register_forward_hook(
                lambda module, given, output: output * math.inf
            )

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if self.handle is not None:
            self.handle.remove()


def test_a_scaler_that_skips_every_step_is_reported(trainer_for, caplog: pytest.LogCaptureFixture) -> None:
    """Trainer's fp16 needs a GPU; here the optimizer's wrapper skips as a scaler would make it."""

    class Skip(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
            optimizer.step = lambda closure=None: None

    trainer = trainer_for(Overflow(*range(STEPS + 1)), Skip())
    trainer.train()
    assert callback_of(trainer).allocator.steps == 0
    (message,) = [record.getMessage() for record in caplog.records if record.name == "glora"]
    assert re.search(r"0 of 4 warm-up steps.*plain LoRA.* 7 times.* deberta\.encoder\.layer\.0\.", message)
