"""Finding and loading a task by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glora
from glora.experiments.data.loading import load_hub_dataset, load_task
from glora.experiments.data.registry import TASKS, UnknownTaskError, reads_data_dir, resolve_task
from glora.experiments.data.task import DataError, DataNotFoundError


def test_the_registry() -> None:
    assert list(TASKS) == [
        "stdlib-docs", "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli",
        "gsm8k", "MATH", "alpaca-cleaned", "databricks-dolly-15k",
    ]  # fmt: skip
    assert all(task.summary and name == task.name for name, task in TASKS.items())
    assert all(reads_data_dir(name) and "examples)" in task.summary for name, task in list(TASKS.items())[1:])
    assert not reads_data_dir("stdlib-docs")
    assert TASKS["cola"].primary_metric == "matthews_correlation"
    assert {"accuracy", "f1"} <= set(TASKS["mrpc"].metrics) & set(TASKS["qqp"].metrics)
    assert TASKS["stsb"].metrics == ("pearson", "spearman")


def test_describing_tasks_metrics_and_models_imports_nothing_heavy() -> None:
    """Under a bare `glora` package, so that what the core imports does not count."""
    code = (
        "import sys, types; package = types.ModuleType('glora'); package.__path__ = [sys.argv[1]];"
        "sys.modules['glora'] = package;"
        "from glora.experiments.models import registry as models; from glora.experiments.data import registry as tasks;"
        "assert tasks.TASKS and models.MODELS;"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'sklearn', 'scipy', 'numpy', 'pyarrow', 'pandas'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    folder = str(Path(glora.__file__).parent)
    output = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rte", "rte"),
        ("RTE", "rte"),
        ("SST-2", "sst2"),
        ("STS-B", "stsb"),
        ("GLUE MNLI", "mnli"),
        ("glue/qnli", "qnli"),
        ("glue_cola", "cola"),
        ("stdlib_docs", "stdlib-docs"),
        ("GSM8K", "gsm8k"),
        ("openai/gsm8k", "gsm8k"),
        ("math", "MATH"),
    ],
)
def test_spellings(name: str, expected: str) -> None:
    assert resolve_task(name).name == expected


def test_a_registered_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rte").mkdir()
    assert resolve_task("rte").name == "rte"
    with pytest.raises(DataNotFoundError, match=r"rte.*train\.\w+"):
        resolve_task("./rte")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnlii", "task 'mnlii'.* mean 'mnli'"),
        ("sst-3", "did you mean 'sst2'"),
        ("imdb", r"task 'imdb'\. .*stdlib-docs, .*; or a data file"),
    ],
)
def test_unknown_tasks_name_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UnknownTaskError, match=message):
        resolve_task(name)


def test_resolving_reads_nothing_but_finds_missing_files(glue_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="rte .*train.tsv and dev.tsv"):
        resolve_task("rte", str(tmp_path))
    (tmp_path / "train.tsv").write_text("not RTE")
    (tmp_path / "dev.tsv").write_text("not RTE")
    found = resolve_task("rte", str(tmp_path))
    with pytest.raises(DataError, match="train.tsv.* columns .*sentence1, sentence2"):
        found.read(load_hub_dataset)
    assert resolve_task("rte").name == "rte"  # the hub is not asked either


@pytest.mark.parametrize("name", ["stdlib-docs", "data/train.csv"])
def test_data_dir_is_for_tasks_that_have_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data_dir=.*; leave it out"):
        load_task(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("argument", ["train_limit", "eval_limit"])
def test_limits_below_one(argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}=0 must be at least 1"):
        load_task("stdlib-docs", **{argument: 0})


def test_limits_apply_to_every_evaluation_split(glue_folder: Path) -> None:
    data = load_task("mnli", data_dir=str(glue_folder), train_limit=50, eval_limit=7)
    sizes = {name: len(rows) for name, rows in data.evaluation.items()}
    assert (len(data.train), sizes) == (50, {"validation_matched": 7, "validation_mismatched": 7})


def test_stdlib_docs_reports_validation_and_keeps_test_back() -> None:
    data = load_task("stdlib-docs", train_limit=40, eval_limit=20)
    assert list(data.evaluation) == ["validation"]
    assert data.label_names == ("other", "own")
    assert data.fingerprint == load_task("stdlib-docs", train_limit=40, eval_limit=20).fingerprint
    assert data.fingerprint != load_task("stdlib-docs", train_limit=41, eval_limit=20).fingerprint


def test_loading_writes_no_cache(glue_folder: Path) -> None:
    def cached() -> set[Path]:
        return {path for path in Path(os.environ["HF_HOME"]).rglob("*") if path.is_file()}

    before = cached()
    load_task("rte", data_dir=str(glue_folder))
    load_task("stdlib-docs", train_limit=40, eval_limit=20)
    assert cached() == before
