"""`glora search` from end to end: a tiny DeBERTa on RTE, interrupted by Ctrl-C, resumed, and reported."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from glora.experiments.records.store import read_records
from glora.experiments.search.record import read_search_record
from glora.experiments.search.storage import sqlite_url
from glora.experiments.training import run as train
from new_process import start_glora
from unit.experiments.plan_case import BROKEN, FakeRuns, raising
from unit.experiments.search.search_case import read_trials

TRIALS = 3


@pytest.fixture
def source(tiny_options: tuple[str, ...]) -> tuple[str, ...]:
    options = "--methods lora,glora --seeds 0 --rank 4 --epochs 2 --range lr=1e-3-2e-2 --range warmup_steps=0.2-0.4"
    return (*tiny_options, *options.split())


def test_a_search_that_is_interrupted_and_resumed(
    call, source: tuple[str, ...], tiny_deberta: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tuned"
    command = [*source, "--trials", str(TRIALS), "--output", str(output)]
    begun = start_glora("search", *command, COLUMNS="220")
    while not re.search(r"^\[2/6\] .*: \d+ steps", begun.printed(), re.MULTILINE):
        assert begun.process.is_alive(), begun.wait()
        time.sleep(0.02)  # until the first trial is kept, and the second is being made
    assert begun.process.pid
    os.kill(begun.process.pid, signal.SIGINT)
    stopped = begun.wait(120)
    assert stopped.returncode == 130, stopped
    assert "Traceback" not in stopped.stderr
    assert re.search(f"kept in {output}; .*same command", stopped.stdout)

    done = call("search", *command)
    assert done.code == 0, done.err
    assert "[1/5]" in done.out, "of six trials one was finished"
    assert "lora, trial 1:" not in done.out.replace("glora, trial 1:", "")
    for method in ("lora", "glora"):
        name = f"tuned / rte / {tiny_deberta.name} / {method}"
        items = [t.user_attrs["item"] for t in read_trials(sqlite_url(output), name) if t.state.name != "FAIL"]
        assert sorted(items) == [f"trial {i}" for i in range(1, TRIALS + 1)]
    records = {record.config.method: record for record in read_records(output)}
    found = read_search_record(output)
    assert found is not None
    for tuned in found.methods:
        record = records[tuned.method]
        assert record.status == "finished"
        assert {name: record.config.setting(name) for name in tuned.best} == tuned.best
        assert record.examples == {"train": 192, "validation": 48}, "all training examples, and the task's own split"
        assert tuned.examples == {"train": 154, "tuning": 38}
    report = (output / "report.md").read_text()
    assert "settings were tuned" in report
    assert f"learning\\_rate={found.methods[0].best['learning_rate']:.4g}" in report
    assert "judged by 38 others" in (output / "report.html").read_text()

    again = call("search", *command)
    assert again.code == 0
    assert "trial 1" not in again.out, "no trial is made"
    assert {record.finished_at for record in read_records(output)} == {r.finished_at for r in records.values()}


def test_a_plan_says_what_is_searched_and_writes_nothing(call, source: tuple[str, ...], tmp_path: Path) -> None:
    shown = call("search", *source, "--trials", 30, "--output", tmp_path / "out", "--plan")
    assert shown.code == 0, shown.err
    for part in (
        "154 of the training examples to train on, 38 others to judge by (accuracy, the higher the better)",
        "60 = 2 studies × 30",
        "TPE, seed 0",
        "learning_rate 0.001 to 0.02 (log); warmup_steps 0.2 to 0.4 (linear)",
        "then 2 runs with the best settings: lora, glora with seed 0",
    ):
        assert part in shown.out
    assert not (tmp_path / "out").exists()


@pytest.mark.encoder
def test_the_example_can_be_searched(call, embedded_encoder: Path) -> None:
    shown = call("search", Path(__file__).parents[3] / "examples" / "experiment.json", "--plan")
    assert shown.code == 0, shown.err
    assert "warmup_steps 12 to 60 (integer)" in shown.out


def test_an_experiment_file_is_searched(
    call, tiny_deberta: Path, glue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "run", FakeRuns())
    file = tmp_path / "study.json"
    file.write_text(
        json.dumps(
            {
                "models_to_use": ["DeBERTa-v3-base (86M)"],
                "datasets_to_use": ["GLUE RTE", "GLUE SST-2"],
                "comparative_methods": [],
                "hyperparameters_to_search": [{"name": "learning_rate", "range": "1e-4-5e-4"}],
                "settings": {"rank": 4, "max_length": 32},
            }
        )
    )
    source = (file, "--model", f"DeBERTa-v3-base={tiny_deberta}", "--data-dir", glue_folder, "--trials", 2)
    done = call("search", *source, "--output", tmp_path / "out", "--seeds", "0,1", "--epochs", 2, "--range", "rank=2,4")
    assert done.code == 0, done.err
    records = read_records(tmp_path / "out")
    assert {(r.config.task, r.config.method, r.config.seed, r.config.epochs) for r in records} == {
        (task, method, seed, 2) for task in ("rte", "sst2") for method in ("lora", "glora") for seed in (0, 1)
    }
    assert all(1e-4 <= record.config.learning_rate <= 5e-4 for record in records)
    for option, value in (("--task", "rte"), ("--methods", "lora")):
        refused = call("search", *source, option, value)
        assert refused.code == 2
        assert f"{option}: the experiment file" in refused.err


def test_what_is_wrong_is_one_message(call, source: tuple[str, ...], tmp_path: Path) -> None:
    for arguments, part in (
        (("--trials", 0), "trials=0: a search needs at least 1 trial"),
        (("--range", "beta=0.9-0.8"), "beta: the range '0.9-0.8' has 0.9 below and 0.8 above"),
        (("--range", "beta"), "--range beta: write NAME=RANGE"),
        (("--range", "lr=1e-4-1e-3"), "--range: lr is given more than once; keep one of them"),
        (("--range", "bta=0-1"), "did you mean 'beta'"),
        (("--storage", "search.db"), "not a database URL"),
        (("--storage", "postgresql://me:secret@127.0.0.1:1/x"), "storage=postgresql://me:***@127.0.0.1:1/x: "),
        (("--held-out", 1.5), "held_out=1.5 must be above 0 and below 1"),
        (("--seeds", "one"), "seeds='one'"),
    ):
        refused = call("search", *source, "--output", tmp_path / "out", *arguments)
        assert refused.code == 2, arguments
        assert part in refused.err
        assert "secret" not in refused.err + refused.out
    assert not (tmp_path / "out").exists()


def test_if_every_trial_fails_the_exit_code_says_so(
    call, source: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "run", FakeRuns(raising(BROKEN)))
    done = call("search", *source, "--trials", 2, "--output", tmp_path / "out")
    assert done.code == 1
    assert re.search("0 of 2 trials .*lora on rte ", done.err)
    assert not (tmp_path / "out" / "report.md").exists()
