"""`glora compare` from end to end: a tiny DeBERTa on RTE, all methods, two seeds, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glora.compress import CompressibleAdapter, Size
from glora.experiments.config import RunConfig
from glora.experiments.methods.registry import METHODS as METHODS_BY_NAME
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import read_records
from new_process import run_glora, start_glora
from one_run import run

METHODS = ("lora", "glora")
DIFFERENT = ("lora", "dora", "pissa", "eva", "lora_ga", "full")  # in preparation, layers or size


def arguments(tiny_options: tuple[str, ...], output: Path, *more: str) -> list[str]:
    return ["compare", *tiny_options, "--output", str(output), *["--rank", "4", "--epochs", "3", "--lr", "5e-3"], *more]


def call(*given: object) -> subprocess.CompletedProcess[str]:
    return run_glora(*given, COLUMNS="160")


@pytest.fixture(scope="module")
def compared(tiny_options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of one comparison, and what it printed."""
    output = tmp_path_factory.mktemp("compared")
    done = call(*arguments(tiny_options, output, "--methods", ",".join(METHODS), "--seeds", "0,1", "--save-adapters"))
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


def test_every_method_and_seed_has_a_finished_record(compared) -> None:
    output, _ = compared
    records = read_records(output)
    assert {(r.config.method, r.config.seed) for r in records} == {(m, s) for m in METHODS for s in (0, 1)}
    assert {r.status for r in records} == {"finished"}
    assert len({r.provenance.data_fingerprint for r in records}) == 1
    for record in records:
        path = output / "runs" / f"{record.key}.json"
        RunRecord.model_validate(json.loads(path.read_text()))
        assert sum(record.ranks.values()) == 4 * len(record.ranks)
        assert record.final["accuracy"] == record.metrics[-1].values["accuracy"]
        assert record.metrics[-1].train_loss < record.metrics[0].train_loss
        assert 0 < record.baseline["accuracy"] < 1
        assert record.baseline["matthews_correlation"] == 0
        adapter = output / "adapters" / record.key
        assert sum(CompressibleAdapter(str(adapter)).cut(Size(energy=1.0)).ranks_before.values()) == sum(
            record.ranks.values()
        )


def test_the_report_is_there_with_every_method(compared) -> None:
    output, printed = compared
    report = (output / "report.md").read_text()
    for method in METHODS:
        assert method in report
        assert method in printed
    assert f"The report: {output / 'report.md'}" in printed
    assert list((output / "pictures").glob("*.png"))


def test_a_log_is_plain_lines(compared) -> None:
    _, printed = compared
    assert "\x1b" not in printed
    lines = printed.splitlines()
    assert any(line.startswith("[4/4] glora, seed 1: 18 steps") for line in lines)
    assert sum("epoch 3, step 18, validation: accuracy" in line for line in lines) == 4
    assert sum("matrices changed rank" in line for line in lines) == 2, "GLoRA, both seeds"


def test_a_broken_run_is_recorded_and_the_others_go_on(tiny_options: tuple[str, ...], tmp_path: Path) -> None:
    methods = "glora:learning_rate=1e30,lora"
    done = call(*arguments(tiny_options, tmp_path, "--methods", methods, "--seeds", "0"))
    assert done.returncode == 1
    records = {record.config.method.partition(":")[0]: record for record in read_records(tmp_path)}
    assert records["lora"].status == "finished"
    assert records["glora"].status == "failed"
    assert records["glora"].exception == "DivergedError"
    assert "training/run.py" in records["glora"].traceback
    assert str(tmp_path) not in records["glora"].model_dump_json()
    assert "seed 0 failed: DivergedError" in done.stdout
    assert "1 of 2 runs did not" in done.stdout
    assert (tmp_path / "report.md").is_file()


def test_methods_that_differ_in_one_command(tiny_options: tuple[str, ...], tmp_path: Path) -> None:
    names = ",".join(DIFFERENT)
    options = ("--methods", names, "--seeds", "0", "--train-limit", "64", "--eval-limit", "16", "--epochs", "2")
    options = (*options, "--report-to", "tensorboard")
    done = call(*arguments(tiny_options, tmp_path, *options))
    assert done.returncode == 0, done.stdout + done.stderr
    records = {record.config.method: record for record in read_records(tmp_path)}
    assert set(records) == set(DIFFERENT)
    lora = records["lora"]
    for method, record in records.items():
        assert (record.status, record.steps) == ("finished", 4)
        if "rank" in METHODS_BY_NAME[method].meets:
            assert sum(record.ranks.values()) == sum(lora.ranks.values()), method
    logs = {path.parent.name for path in (tmp_path / "logs").rglob("events.out.tfevents.*")}
    assert logs == {record.key for record in records.values()}
    assert {m for m, r in records.items() if r.preparation_seconds} == {"pissa", "eva", "lora_ga"}
    report = (tmp_path / "report.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in report.splitlines() if line.startswith("| ")}
    assert {METHODS_BY_NAME[name].title for name in DIFFERENT} <= set(rows)
    larger = 100 * records["dora"].adapter_parameters_after / lora.adapter_parameters_after
    assert f"| {larger:.1f} % |" in report
    assert "full fine-tuning has no adapter" in report


# those that have an optimizer, a look at the data, their own layer or model
@pytest.mark.parametrize("method", ["dora", "eva", "lora_ga", "lora_plus", "adalora", "full"])
def test_methods_learn_written_answers_too(tiny_writer: Path, sums_folder: Path, method: str) -> None:
    settings = {"model": str(tiny_writer), "task": "gsm8k", "data_dir": str(sums_folder), "train_limit": 32}
    few = {"eval_limit": 4, "batch_size": 16, "epochs": 2, "rank": 2, "max_length": 40, "max_new_tokens": 2}
    record = run(METHODS_BY_NAME[method].normalise(RunConfig.model_validate({**settings, **few}), 0))
    assert record.status == "finished", record.traceback
    assert (record.steps, set(record.final)) == (4, {"exact_match", "loss", "perplexity"})
    assert record.trainable_parameters_before == record.adapter_parameters_before or method == "full"
    if "rank" in METHODS_BY_NAME[method].meets:
        assert sum(record.ranks.values()) == 2 * 14


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_finished_runs_and_the_same_command_goes_on(tiny_options: tuple[str, ...], tmp_path: Path) -> None:
    given = arguments(tiny_options, tmp_path, "--methods", "lora", "--seeds", "0,1,2")
    running = start_glora(*given)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "runs").glob("*.json")):
        assert running.process.is_alive(), running.wait()
        assert time.monotonic() < deadline, "no run was finished in time"
        time.sleep(0.05)
    assert running.process.pid
    os.kill(running.process.pid, signal.SIGINT)
    done = running.wait(60)
    assert done.returncode == 130, done
    assert "the same command" in done.stdout
    assert "Traceback" not in done.stderr
    kept = {record.key for record in read_records(tmp_path)}
    assert 1 <= len(kept) < 3
    assert not list((tmp_path / "runs").glob(".*")), "no half-written record"

    again = call(*given)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{len(kept)} already finished, {3 - len(kept)} left" in again.stdout
    records = read_records(tmp_path)
    assert len(records) == 3
    assert kept < {record.key for record in records}
