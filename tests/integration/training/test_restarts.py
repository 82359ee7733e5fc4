"""Trainer's work around a training: the best model at the end, a search, a smaller batch, a model that it makes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from glora import RankAllocationCallback, RankAllocator
from integration.adapters.test_saved_adapter import stock_logits
from integration.training.resume_case import WARMUP, Job, differences, make_trainer, outcome, run
from integration.training.trainer_case import TAKEN_OUT, base_model, callback_of, logits_of, lora_config


class Score(TrainerCallback):
    """Decides which step was the best."""

    def __init__(self, best: int) -> None:
        self.best = best

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        metrics["eval_loss"] = float(abs(state.global_step - self.best))


@pytest.mark.parametrize("best", [WARMUP - 2, WARMUP, WARMUP + 2])
def test_the_best_model_has_its_own_ranks(job: Job, batch: dict, tmp_path: Path, best: int) -> None:
    arguments = dict(eval_strategy="steps", eval_steps=1, load_best_model_at_end=True)
    job = job.replace(config=dict(max_rank={TAKEN_OUT: 0}), arguments=arguments)
    trainer = make_trainer(job)
    trainer.add_callback(Score(best))
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(job.checkpoint(best))
    model, callback = trainer.model, callback_of(trainer)
    assert callback.allocator.allocated

    saved = load_file(job.checkpoint(best) / "adapter_model.safetensors")
    held = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert {n for n in saved if "lora_" in n} == set(held)
    assert all(torch.equal(saved[n], p) for n, p in held.items())
    assert (callback.allocator.ranks[TAKEN_OUT] == 0) == (best >= WARMUP)
    assert len(set(callback.allocator.ranks.values())) == 1 or best >= WARMUP

    folder = tmp_path / "final"
    live = logits_of(model, batch)
    trainer.save_model(str(folder))
    assert torch.equal(stock_logits(job.base, batch, tmp_path, folder)[0], live)

    # the record beside it has the ranks of these weights, not those that the training ended with
    record, card = json.loads((folder / "allocation.json").read_text()), (folder / "README.md").read_text()
    assert {name: matrix["rank"] for name, matrix in record["matrices"].items()} == callback.allocator.ranks
    if best < WARMUP:
        assert record["reallocation"] is None
        assert record["parameters"]["after"] == record["parameters"]["before"]
        assert "allocated the ranks" not in card
        assert f"step {WARMUP}" in card
    else:
        assert record["reallocation"]["step"] == WARMUP
        assert re.search(f"{WARMUP} steps.* {sum(callback.allocator.ranks.values())} ranks", card)


def with_model_init(job: Job, callbacks: list[Any]) -> Trainer:
    """The same training, of models that Trainer makes itself."""
    like = make_trainer(job.replace(config=None))
    return Trainer(
        model_init=lambda: make_trainer(job.replace(config=None)).model,
        args=like.args,
        train_dataset=like.train_dataset,
        eval_dataset=like.eval_dataset,
        data_collator=like.data_collator,
        callbacks=callbacks,
    )


def test_every_trial_of_a_search_starts_clean(job: Job, tmp_path: Path) -> None:
    begun: list[RankAllocator] = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs) -> None:
            assert not callback.allocator.allocated
            assert set(callback.allocator.ranks.values()) == {4}
            assert callback.allocator.steps == 0
            begun.append(callback.allocator)

        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == WARMUP + 1 and len(begun) == 2:
                raise optuna.TrialPruned

    callback = RankAllocationCallback(warmup_steps=WARMUP)
    trainer = with_model_init(job, [callback, Note()])
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 5e-3)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=3,
        backend="optuna",
    )
    assert len(begun) == 3
    assert all(allocator.reallocation.step == WARMUP for allocator in begun)
    assert begun[0].adapter.root is not begun[2].adapter.root
    for trial in (0, 2):
        beside = json.loads((job.output / f"run-{trial}" / f"checkpoint-{WARMUP}" / "allocation.json").read_text())
        assert {name: matrix["rank"] for name, matrix in beside["matrices"].items()} == begun[trial].ranks


def test_a_model_that_trainer_makes_itself(job: Job) -> None:
    """It is made after the callback's last event before loading, so only equal ranks can be loaded; others fail aloud."""
    with_model_init(job, [RankAllocationCallback(warmup_steps=WARMUP)]).train()
    again = with_model_init(job, [RankAllocationCallback(warmup_steps=WARMUP)])
    with pytest.raises(RuntimeError, match="size mismatch"):
        again.train(resume_from_checkpoint=str(job.checkpoint(WARMUP)))
    callback = RankAllocationCallback(warmup_steps=WARMUP)
    again = with_model_init(job, [callback])
    again.train(resume_from_checkpoint=str(job.checkpoint(WARMUP - 1)))
    assert callback.allocator.reallocation.step == WARMUP


def test_trainer_resumes_no_model_with_an_added_adapter(trainer_of, tiny_deberta: Path, tmp_path: Path) -> None:
    """It looks for a whole model in the checkpoint, with or without glora, and says that it found none."""

    def make(callbacks: list[Any], output: Path) -> Trainer:
        model = base_model(tiny_deberta)
        model.add_adapter(lora_config(task_type=None))
        arguments = dict(max_steps=WARMUP + 2, save_strategy="steps", save_steps=1)
        return trainer_of(*callbacks, model=model, output=output, **arguments)

    for name, callbacks in (("plain", []), ("glora", [RankAllocationCallback(warmup_steps=WARMUP)])):
        make(callbacks, tmp_path / name).train()
        for step in (WARMUP - 1, WARMUP + 1):
            with pytest.raises(ValueError, match="Can't find a checkpoint index"):
                make(callbacks, tmp_path / "again").train(
                    resume_from_checkpoint=str(tmp_path / name / f"checkpoint-{step}")
                )


class OutOfMemory(TrainerCallback):
    """Fails as PyTorch does, once, when a step begins."""

    def __init__(self, step: int) -> None:
        self.step: int | None = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.step = None
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_smaller_batch_starts_clean(job: Job, tmp_path: Path) -> None:
    job = job.replace(config=dict(max_rank={TAKEN_OUT: 0}), arguments=dict(auto_find_batch_size=True))
    trainer = make_trainer(job)
    trainer.add_callback(OutOfMemory(WARMUP + 2))
    begun: list[RankAllocator] = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs) -> None:
            allocator = callback_of(trainer).allocator
            assert set(allocator.ranks.values()) == {4}
            assert not allocator.allocated
            assert len(allocator._optimizer._optimizer_step_post_hooks) == 1
            begun.append(allocator)

    trainer.add_callback(Note())
    trainer.train()
    before, after = begun
    assert after.steps == after.reallocation.step == WARMUP
    assert before.allocated
    assert trainer.state.train_batch_size < 8
    order = {p: i for i, p in enumerate(trainer.model.parameters())}
    for group in trainer.optimizer.param_groups:
        places = [order[p] for p in group["params"] if p in order]  # not those at rank 0
        assert places == sorted(places), "as in an optimizer that a new process makes"

    # what it saves can be resumed in a new process: the optimizer's state goes to the right parameters
    small = dict(per_device_train_batch_size=trainer.state.train_batch_size)
    resumed = job.replace(output=tmp_path / "new", resume=job.checkpoint(WARMUP - 1), arguments=small)
    assert not differences(outcome(trainer), run(resumed))


def test_out_of_memory_after_resuming(job: Job) -> None:
    """Trainer would go on with the weights as they are and the checkpoint's optimizer: other ranks do not fit."""
    job = job.replace(config=dict(min_rank=1), arguments=dict(auto_find_batch_size=True))
    run(job)
    for step, fits in ((WARMUP - 1, True), (WARMUP + 1, False)):
        trainer = make_trainer(job)
        trainer.add_callback(OutOfMemory(step))
        resume = str(job.checkpoint(WARMUP - 2))
        if fits:
            trainer.train(resume_from_checkpoint=resume)
            assert callback_of(trainer).allocator.reallocation.step == WARMUP
        else:
            with pytest.raises(ValueError, match="auto_find_batch_size.*new process"):
                trainer.train(resume_from_checkpoint=resume)
