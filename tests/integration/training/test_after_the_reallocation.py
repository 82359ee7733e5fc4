"""Trainer once the ranks have changed: trained again, set back, with a group for each matrix, saved, published."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from integration.training.resume_case import WARMUP, Job, differences, make_trainer, outcome
from integration.training.trainer_case import TAKEN_OUT, callback_of, logits_of

OTHER_TAKEN_OUT = TAKEN_OUT.replace("key", "query")
TAKEN_OUT_AT_ONCE = dict(max_rank={TAKEN_OUT: 0, OTHER_TAKEN_OUT: 0})


class LayerWise(Trainer):
    """A parameter group for each matrix, whose learning rates fall with its depth; two groups lose all they hold."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        groups: dict[str, list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(name.partition(".lora_")[0], []).append(parameter)
        rated = [{"params": held, "lr": 5e-3 * 0.95**i} for i, held in enumerate(groups.values())]
        self.optimizer = torch.optim.AdamW(rated)
        return self.optimizer


class At(TrainerCallback):
    """Does something after a step, with the model; once only."""

    def __init__(self, step: int, do: Any) -> None:
        self.step: int | None = step
        self.do = do

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == self.step:
            self.step = None
            self.do(model)


@pytest.fixture
def job(job: Job) -> Job:
    return job.replace(config=TAKEN_OUT_AT_ONCE)


@pytest.mark.parametrize("ended", ["by Ctrl-C", "by itself"])
def test_training_again_goes_on_from_what_was_learned(job: Job, batch: dict, ended: str) -> None:
    trainer = make_trainer(job.replace(arguments=dict(save_strategy="no")))

    def interrupt(model: Any) -> None:
        raise KeyboardInterrupt

    if ended == "by Ctrl-C":
        trainer.add_callback(At(WARMUP + 2, interrupt))
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    ranks, logits = callback_of(trainer).allocator.ranks, logits_of(trainer.model, batch)
    assert len(set(ranks.values())) > 2
    begun: list[str] = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
            assert callback_of(trainer).allocator.ranks == ranks
            assert torch.equal(logits_of(model, batch), logits)
            begun.append("again")

    trainer.add_callback(Look())
    trainer.train()
    assert begun == ["again"]
    assert callback_of(trainer).allocator.reallocation.step == WARMUP


def test_a_group_for_each_matrix_resumes_from_every_checkpoint(job: Job, tmp_path: Path) -> None:
    job = job.replace(trainer_class=LayerWise)
    first = make_trainer(job)
    first.train()
    whole = outcome(first)
    assert [sum(p.numel() for p in g["params"]) for g in first.optimizer.param_groups].count(0) == 2
    folder = job.output
    for step in (WARMUP - 1, WARMUP, WARMUP + 1, WARMUP + 3):  # each of the run that the one before resumed
        again = make_trainer(job.replace(output=tmp_path / f"from {step}"))
        again.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert not differences(whole, outcome(again)), step
        folder = tmp_path / f"from {step}"


def test_the_model_can_be_saved_whole_while_it_trains(job: Job, batch: dict) -> None:
    trainer = make_trainer(job.replace(arguments=dict(save_strategy="no")))
    saved = []

    def save(model: Any) -> None:
        file = io.BytesIO()
        torch.save(model, file)
        saved.append((file, logits_of(model, batch)))
        model.train()

    for step in (1, WARMUP, WARMUP + 2):
        trainer.add_callback(At(step, save))
    trainer.train()
    assert len(saved) == 3
    for file, logits in saved:
        file.seek(0)
        assert torch.equal(logits_of(torch.load(file, weights_only=False), batch), logits)
