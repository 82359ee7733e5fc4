"""`glora run` from end to end: an experiment file on a tiny DeBERTa and RTE, in processes of their own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from glora.experiments.publishing import published_name
from glora.experiments.records.store import read_records
from new_process import run_glora, run_script

EXPERIMENT = {
    "experiment_summary": "A tiny model on tiny data.",
    "evaluation_metrics": ["Accuracy", "Wall-clock Training Time"],
    "models_to_use": ["DeBERTa-v3-base (86M)"],
    "datasets_to_use": ["GLUE RTE", "GLUE SST-2"],
    "comparative_methods": [],
    "hyperparameters_to_search": [
        {"name": "learning_rate", "range": "1e-4-5e-4"},
        {"name": "beta (EMA)", "range": "0.8-0.99"},
    ],
    "seeds": [0],
    "settings": {"epochs": 3, "rank": 4, "learning_rate": 5e-3, "max_length": 32},
}
LOADING_IS_AN_ERROR = """
import socket, sys
import datasets, transformers
def refuse(*_, **__): raise AssertionError("something is loaded")
for name in ("PreTrainedModel", "AutoModelForSequenceClassification", "AutoTokenizer"):  # a folder's config.json is read
    getattr(transformers, name).from_pretrained = refuse
datasets.load_dataset = socket.socket.connect = refuse
from glora.experiments.data import custom_data, glue, source, stdlib_docs, table_files
for module in (custom_data, glue, source, table_files):
    module.read_table = refuse
stdlib_docs.build_splits = refuse
from glora.cli import main
sys.argv[0] = "glora"
main()
"""


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_glora("run", *arguments, COLUMNS="200")


def plan(folder: Path, *arguments: object) -> str:
    """Return what `--plan` prints, in a process in which loading anything is an error."""
    program = folder / "program.py"
    program.write_text(LOADING_IS_AN_ERROR)
    done = run_script(program, "run", *arguments, "--plan", folder=folder, COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def file(tiny_deberta: Path, glue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.json"
    overrides = {"model_overrides": {"DeBERTa-v3-base (86M)": str(tiny_deberta)}, "data_dir": str(glue_folder)}
    path.write_text(json.dumps(EXPERIMENT | overrides))
    return path


@pytest.fixture(scope="module")
def ran(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of an experiment, and what was printed."""
    output = tmp_path_factory.mktemp("ran")
    done = call(file, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


def test_every_run_of_the_file_is_made_and_reported(ran, tiny_deberta: Path) -> None:
    output, printed = ran
    records = read_records(output)
    assert {(r.config.task, r.config.method, r.config.seed) for r in records} == {
        (task, method, 0) for task in ("rte", "sst2") for method in ("lora", "glora")
    }
    assert {(r.status, r.config.model, r.config.learning_rate) for r in records} == {
        ("finished", published_name(str(tiny_deberta)), 5e-3)
    }
    report = (output / "report.md").read_text()
    assert all(word in report for word in ("rte", "sst2", "glora", "Accuracy"))
    assert f"The report: {output / 'report.md'}" in printed
    assert re.search("`glora run` .*`glora search` .*learning_rate=0.005, beta=0.9", printed)


def test_a_plan_loads_nothing_and_says_what_it_does_not_know(file: Path, tmp_path: Path) -> None:
    printed = plan(tmp_path, file, "--output", tmp_path / "out")
    assert "4 = 1 model × 2 data sets × 2 methods × 1 seed" in printed
    assert "learning_rate 0.0001 to 0.0005 (log); beta 0.8 to 0.99 (linear)" in printed
    assert "unknown: no finished run" in printed
    assert "when its data is" in printed
    assert not (tmp_path / "out").exists()


def test_a_plan_needs_neither_the_hub_nor_the_data(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(EXPERIMENT | {"datasets_to_use": ["GLUE MNLI"], "comparative_methods": ["AdaLoRA"]}))
    printed = plan(tmp_path, path, "--output", tmp_path)
    assert "DeBERTa-v3-base (86M) = deberta-v3-base = microsoft/deberta-v3-base" in printed
    assert "GLUE MNLI = mnli" in printed
    assert "3 = 1 model × 1 data set × 3 methods × 1 seed" in printed


def test_a_plan_with_earlier_runs_knows_steps_and_times(ran, file: Path, tmp_path: Path) -> None:
    output, _ = ran
    printed = plan(tmp_path, file, "--output", output, "--seeds", "0,1", "--set", "epochs=6")
    assert re.search(r"about (\d+ min )?\d+ s, .*finished runs", printed)
    for method in ("lora", "glora"):  # 192 examples are 6 steps an epoch; other epochs make every run a new one
        assert re.search(rf"sst2 +{method} +0,1 +36 +2 +(\d+ min )?\d+ s", printed), printed
    printed = plan(tmp_path, file, "--output", output, "--seeds", "0,1")
    assert re.search(r"rte +lora +0,1 +18 +1 +\d+ s", printed), "of two seeds one is finished"


def test_without_a_network_the_study_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps(EXPERIMENT | {"datasets_to_use": ["stdlib-docs", "GLUE MNLI", "GLUE QNLI"]}))
    done = call(path, "--output", tmp_path)
    assert done.returncode == 2
    assert f"{path}: 3 things are wrong:" in done.stderr
    assert "- stdlib-docs: cannot load" in done.stderr  # its data are there, the model is not
    assert "- mnli: " in done.stderr
    assert "- qnli: " in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def refused(call) -> Callable[..., str]:
    """`glora run ...`; the message with which it is refused."""

    def run_command(*arguments: object) -> str:
        done = call("run", *arguments)
        assert done.code == 2
        return done.err

    return run_command


def test_what_is_wrong_with_a_file_is_one_message(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(EXPERIMENT | {"datasets_to_use": ["gsm8"], "comparative_methods": ["AdaLoR"]}))
    message = refused(path, "--plan")
    assert re.search("'gsm8' .*data set; .*'gsm8k'", message)
    assert re.search("'AdaLoR' .*method; .*'adalora'", message)
    path.write_text('{"seeds": [0],}')
    assert re.search(f"{path}: malformed JSON .*line 1, column 15", refused(path, "--plan"))


def test_options_that_make_no_sense_are_refused(refused: Callable[..., str], file: Path) -> None:
    assert "--set epochs: write NAME=VALUE" in refused(file, "--set", "epochs")
    assert "--model =x: write NAME=VALUE" in refused(file, "--model", "=x")
    assert re.search("settings: epoch: .*no such setting; .*'epochs'", refused(file, "--set", "epoch=1"))
    assert "model_overrides: 'bert' is not in models_to_use" in refused(file, "--model", "bert=x/y")
    assert "seeds='one'" in refused(file, "--seeds", "one")
    assert "seeds is empty" in refused(file, "--seeds", "")
    assert "experiment file is missing" in refused()


def test_the_schema_is_json(call) -> None:
    assert set(EXPERIMENT) < set(json.loads(call("run", "--schema").out)["properties"])
