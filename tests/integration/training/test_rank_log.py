"""Norms and ranks in TensorBoard's own event files, by the library's callback and in an experiment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import TrainerCallback

from glora import RankAllocationCallback, RankAllocator, RankLogCallback
from glora.experiments.config import RunConfig
from glora.experiments.methods.registry import METHODS
from glora.experiments.training.reporting import reporters
from one_run import run

pytest.importorskip("tensorboard")

Curves = dict[str, list[tuple[int, float]]]


def curves_in(folder: Path) -> Curves:
    """Tag -> (step, value), from every event file under a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Curves = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return found


def steps(curve: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in curve]


# The library


@pytest.fixture
def log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    return tmp_path / "board"


def test_norms_and_ranks_reach_tensorboard(trainer_of, log_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms, reads, seen = RankAllocator.norms.fget, [], {}
    monkeypatch.setattr(RankAllocator, "norms", property(lambda self: (reads.append(self.steps), norms(self))[1]))

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            seen[state.global_step] = norms(callback.allocator)

    callback = RankAllocationCallback(warmup_steps=6)
    arguments = {"report_to": "tensorboard", "logging_steps": 2, "max_steps": 10}
    trainer = trainer_of(callback, Watch(), **arguments)
    trainer.add_callback(RankLogCallback(trainer))
    trainer.train()

    curves, allocator = curves_in(log_folder), callback.allocator
    assert steps(curves["train/loss"]) == [2, 4, 6, 8, 10]
    for name, rank in allocator.ranks.items():
        assert curves[f"train/glora/rank/{name}"] == [(2, 4), (4, 4), (6, rank), (8, rank), (10, rank)]
        logged = [(step, pytest.approx(seen[step][name], rel=1e-6)) for step in (2, 4)]
        assert curves[f"train/glora/norm/{name}"] == logged, "after the warm-up no norms are averaged"
    assert [value for _, value in curves["train/glora/total_rank"]] == [48] * 5
    assert curves["train/glora/largest_rank"][1:3] == [(4, 4), (6, max(allocator.ranks.values()))]
    assert curves["train/glora/smallest_rank"][1:3] == [(4, 4), (6, min(allocator.ranks.values()))]
    assert curves["train/glora/adapter_parameters"][-1] == (10, allocator.parameters)
    assert [step for step in reads if step != 6] == [2, 4], "but for the allocation, only at a log of the warm-up"
    assert not any("glora" in name for entry in trainer.state.log_history for name in entry), "the console is spared"


def test_without_an_allocation_it_says_what_is_missing(trainer_of) -> None:
    trainer = trainer_of(max_steps=1)
    trainer.add_callback(RankLogCallback(trainer))
    with pytest.raises(ValueError, match=r"callbacks=\[RankAllocationCallback\(\)\]"):
        trainer.train()


def test_without_a_reporter_it_warns(trainer_of, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(RankAllocationCallback(warmup_steps=1), max_steps=2)
    trainer.add_callback(RankLogCallback(trainer))
    trainer.train()
    assert "report_to" in caplog.text


# Experiments


@pytest.fixture
def config(tiny_deberta: Path, glue_folder: Path) -> Callable[..., RunConfig]:
    def make(method: str, **settings: Any) -> RunConfig:
        data = dict(task="rte", data_dir=str(glue_folder), train_limit=128, eval_limit=32, max_length=32)
        given = RunConfig(model=str(tiny_deberta), rank=4, epochs=2, learning_rate=5e-3, **data, **settings)
        return METHODS[method].normalise(given, 0)

    return make


def test_a_reported_run_is_the_same_run(config: Callable[..., RunConfig], tmp_path: Path) -> None:
    silent, reported = config("glora"), config("glora", report_to="tensorboard")
    assert reported.report_to == "tensorboard", "it outlives the normalisation"
    assert silent.key == reported.key
    plain = run(silent)
    assert plain.status == "finished", plain.traceback
    record = run(reported, output=tmp_path)
    assert record.status == "finished", record.traceback
    assert "report_to" not in record.model_dump_json()
    assert (record.final, record.ranks, record.norms) == (plain.final, plain.ranks, plain.norms)
    losses = [[m.train_loss for m in found.metrics] for found in (record, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)

    curves = curves_in(tmp_path / "logs" / record.key)
    assert steps(curves["train/loss"]) == list(range(1, 9))
    assert steps(curves["eval/validation_accuracy"]) == [4, 8]
    logged = [loss for _, loss in curves["train/loss"]]
    means = [sum(logged[:4]) / 4, sum(logged[4:]) / 4]
    assert losses[0] == pytest.approx(means, rel=1e-5), (
        "the mean since the evaluation before, however often it is logged"
    )
    name, rank = next(iter(record.ranks.items()))
    assert curves[f"train/glora/rank/{name}"][-1] == (8, rank)
    assert steps(curves[f"train/glora/norm/{name}"]) == [1, 2, 3, 4]
    assert curves["train/glora/adapter_parameters"][-1] == (8, record.adapter_parameters_after)


def test_every_run_has_its_folder_and_its_w_and_b_run(
    config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = []
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.run, wandb.finish = object(), lambda: finished.append(True)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "mine"))
    for method in ("lora", "full"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "wandb", wandb)
            record = run(config(method, report_to="tensorboard"), output=tmp_path)
        assert record.status == "finished", record.traceback
        curves = curves_in(tmp_path / "logs" / record.key)
        assert steps(curves["train/loss"])[-1] == 8
        assert ("train/glora/total_rank" in curves) == (method == "lora")
    assert finished == [True, True], "or the second run would go on with the first one's"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "mine")


def test_reporters_are_checked_by_name_and_by_what_is_installed() -> None:
    assert reporters(None) == reporters("") == []
    assert reporters(" tensorboard ") == ["tensorboard"]
    with pytest.raises(ValueError, match="'tensorbord'.*did you mean 'tensorboard'"):
        reporters("tensorboard,tensorbord")
    with pytest.raises(ValueError, match="'neptune'.*not installed"):
        reporters("neptune")
