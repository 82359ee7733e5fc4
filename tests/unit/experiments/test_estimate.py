"""Estimates of runs before their data is read, from the records of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from glora.experiments import experiment as experiments
from glora.experiments.config import RunConfig
from glora.experiments.data.loading import load_task
from glora.experiments.data.task import DataNotFoundError
from glora.experiments.estimate import Pace, estimate, time_steps
from glora.experiments.experiment import ResolvedExperiment, load_experiment, plan_experiment
from glora.experiments.experiment_file import InvalidExperimentError
from glora.experiments.plan_view import time_of
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import write_record
from unit.experiments.synthetic_records import finished_run

EXAMPLES = 3_840  # 120 steps of 32


def experiment(folder: Path, **fields: Any) -> ResolvedExperiment:
    path = folder / "experiment.json"
    content = {"models_to_use": ["all-MiniLM-L6-v2"], "datasets_to_use": ["stdlib-docs"], "comparative_methods": []}
    path.write_text(json.dumps({**content, "seeds": [0], **fields}))
    return load_experiment(path)


def earlier(folder: Path, config: RunConfig, *, steps: int, training: float, whole: int, examples: int) -> RunRecord:
    """Write the record of a finished run with these figures."""
    record = finished_run(**config.model_dump()).model_copy(
        update={
            "steps": steps,
            "train_seconds": training,
            "started_at": "2026-01-31T12:00:00+00:00",
            "finished_at": f"2026-01-31T12:{whole // 60:02d}:{whole % 60:02d}+00:00",
            "examples": {"train": examples, "validation": 10},
        }
    )
    write_record(folder, record)
    return record


def test_without_records_nothing_is_known(tmp_path: Path) -> None:
    found = estimate(experiment(tmp_path), tmp_path / "out")
    assert [(run.config.method, run.steps, run.seconds) for run in found.runs] == [
        ("lora", None, None),
        ("glora", None, None),
    ]
    assert found.seconds is None


def test_steps_and_seconds_are_scaled_from_a_finished_run(tmp_path: Path) -> None:
    config = experiment(tmp_path).configs[0]
    earlier(tmp_path, config, steps=360, training=90, whole=120, examples=EXAMPLES)
    found = estimate(experiment(tmp_path, seeds=[0, 1]), tmp_path)
    assert [(run.config.method, run.config.seed) for run in found.to_make] == [("glora", 0), ("lora", 1), ("glora", 1)]
    assert {run.steps for run in found.runs} == {360}
    assert found.seconds == pytest.approx(3 * 120), "glora has no record: lora's is used"
    longer = estimate(experiment(tmp_path, settings={"epochs": 6}), tmp_path)
    assert [run.steps for run in longer.runs] == [720, 720]
    assert longer.runs[0].seconds == pytest.approx(2 * 90 + 30), "30 s are not training"


def test_a_method_is_judged_by_its_own_runs(tmp_path: Path) -> None:
    lora, glora = experiment(tmp_path).configs
    earlier(tmp_path, lora, steps=360, training=90, whole=90, examples=EXAMPLES)
    earlier(tmp_path, glora, steps=360, training=60, whole=60, examples=EXAMPLES)
    found = estimate(experiment(tmp_path, seeds=[1]), tmp_path)
    assert [run.seconds for run in found.runs] == [pytest.approx(90), pytest.approx(60)]


@pytest.mark.parametrize(
    ("change", "steps_known", "seconds_known"),
    [
        ({"settings": {"learning_rate": 1e-3}}, True, True),
        ({"settings": {"batch_size": 16}}, True, False),
        ({"models_to_use": ["roberta-base"]}, True, False),
        ({"settings": {"train_limit": 100}}, False, False),
        ({"datasets_to_use": ["RTE"]}, False, False),
    ],
)
def test_only_what_is_alike_is_a_measure(
    tmp_path: Path, change: dict[str, Any], steps_known: bool, seconds_known: bool
) -> None:
    earlier(tmp_path, experiment(tmp_path).configs[0], steps=360, training=90, whole=90, examples=EXAMPLES)
    run = estimate(experiment(tmp_path, **change), tmp_path).runs[0]
    assert ((run.steps is not None), (run.seconds is not None)) == (steps_known, seconds_known)
    if change.get("settings") == {"batch_size": 16}:
        assert run.steps == 720


def test_earlier_runs_tell_steps_and_time_wherever_the_data_lie(tmp_path: Path, glue_folder: Path) -> None:
    wanted = experiment(tmp_path, datasets_to_use=["GLUE RTE"], data_dir=str(glue_folder))
    elsewhere = wanted.configs[0].model_copy(update={"data_dir": "elsewhere", "seed": 7})
    earlier(tmp_path, elsewhere, steps=9, training=60, whole=60, examples=192)
    for run in estimate(wanted, tmp_path).to_make:
        assert run.steps == 18, "192 examples in batches of 32, three times"
        assert run.seconds == pytest.approx(120), "twice the steps of the earlier run"


def test_a_failed_run_is_to_be_made_again_and_is_no_measure(tmp_path: Path) -> None:
    config = experiment(tmp_path).configs[0]
    record = earlier(tmp_path / "other", config, steps=360, training=90, whole=90, examples=EXAMPLES)
    write_record(tmp_path, record.model_copy(update={"status": "failed", "error": "ValueError: broken"}))
    found = estimate(experiment(tmp_path), tmp_path)
    assert len(found.to_make) == 2
    assert found.seconds is None


def test_errors_of_all_data_sets_are_said_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_output: Path, *, settings: dict[str, Any], **_: object) -> None:
        raise DataNotFoundError(f"no {settings['task']} here")

    monkeypatch.setattr(experiments, "plan_comparison", missing)
    wanted = experiment(tmp_path, datasets_to_use=["RTE", "MNLI"])
    with pytest.raises(InvalidExperimentError) as refused:
        plan_experiment(wanted, tmp_path)
    assert refused.value.errors == ("rte: no rte here", "mnli: no mnli here")


def test_a_few_steps_are_timed_and_nothing_is_kept(
    tiny_deberta: Path, glue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs only in steps: the first, which chooses kernels, takes 100 s, the others 1, 2, 3, ... s."""
    ends = iter([100.0, 101.0, 103.0, 106.0, 110.0, 115.0, 121.0, 999.0])
    monkeypatch.setattr("glora.experiments.estimate.perf_counter", lambda: next(ends))
    monkeypatch.chdir(tmp_path)
    config = RunConfig(
        **{"method": "glora", "model": str(tiny_deberta), "task": "rte", "data_dir": str(glue_folder)},
        **{"max_length": 16, "batch_size": 8, "save_adapters": True, "report_to": "tensorboard"},
    )
    task = load_task("rte", data_dir=str(glue_folder))
    assert time_steps(config, task) == Pace("glora", seconds=3.5)
    assert next(ends) == 999.0, "no step more was made"
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_timed_says_why(tiny_deberta: Path, glue_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"task": "rte", "data_dir": str(glue_folder)}
    config = RunConfig(method="lora", model=str(tiny_deberta), max_length=16, batch_size=192, epochs=1, **data)
    task = load_task("rte", data_dir=str(glue_folder))
    assert time_steps(config, task).unknown == "a run has one step"
    assert "no_such_layer" in str(time_steps(config.with_settings({"target_modules": ["no_such_layer"]}), task).unknown)
    monkeypatch.setattr("glora.experiments.estimate.weights_fingerprint", lambda _: None)
    assert "not on this machine" in str(time_steps(config, task).unknown)


def test_the_time_of_a_plan_follows_from_that_of_a_step() -> None:
    assert time_of(600, Pace("lora", 0.25)).startswith(
        "about 2 min 30 s of training at 0.25 s a step, timed now with lora"
    )
    assert time_of(600, Pace("lora", unknown="a run has one step")) == "unknown: a run has one step"
