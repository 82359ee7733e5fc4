"""GLUE from its own files and from the hub: the same rows, and every error by file and line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from glora.experiments.data.glue import GLUE as TASKS
from glora.experiments.data.glue import GlueTask
from glora.experiments.data.loading import load_hub_dataset, load_task
from glora.experiments.data.task import DataError, DataNotFoundError, Examples

GLUE = {source.task.name: source for source in TASKS}


def read_files(source: GlueTask, folder: Path | str) -> dict[str, Examples]:
    return source.read(folder, load_hub_dataset)


@pytest.mark.parametrize("name", GLUE)
def test_every_task_from_files(glue_folder: Path, name: str) -> None:
    splits = read_files(GLUE[name], glue_folder)
    evaluation = ("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)
    assert tuple(splits) == ("train", *evaluation)
    for rows in splits.values():
        assert len(rows) == len(rows.columns["label"]) == (192 if rows is splits["train"] else 48)
        assert ("text_b" not in rows.columns) == (name in {"cola", "sst2"})
    # what the files are known to say: by its adverb a pair is entailed (`also`) or not
    if name not in {"cola", "sst2", "stsb", "mnli"}:
        names = GLUE[name].task.label_names
        assert names is not None
        for text, label in zip(splits["train"].columns["text_b"], splits["train"].columns["label"]):
            assert (" also " in text) == (names[label] in {"entailment", "equivalent", "duplicate"})


def test_values_of_the_first_rows(glue_folder: Path) -> None:
    rows = {name: read_files(GLUE[name], glue_folder)["train"].columns for name in GLUE}
    assert rows["cola"]["text_a"][0] == "The black dog sleep in the river."
    assert rows["cola"]["label"][:3] == [0, 1, 1]
    assert rows["sst2"]["text_a"][0] == "a dull film about a black dog "
    assert rows["stsb"]["label"][:2] == [5.0, 0.6]
    assert rows["rte"]["text_a"][0] == 'The black dog sleeps in the river, "they say.'
    assert rows["mnli"]["text_b"][0] == "The dog is also in the garden."
    assert rows["mnli"]["label"][:3] == [1, 0, 2]  # written neutral, entailment, contradiction


@pytest.mark.parametrize("name", ["rte", "mnli"])
def test_data_dir_may_be_glues_folder_or_the_tasks_own(glue_folder: Path, tmp_path: Path, name: str) -> None:
    folder = GLUE[name].folders[0]
    expected = load_task(name, data_dir=str(glue_folder)).fingerprint
    assert load_task(name, data_dir=str(glue_folder / folder)).fingerprint == expected
    shutil.copytree(glue_folder / folder, tmp_path / name)
    assert load_task(name, data_dir=str(tmp_path)).fingerprint == expected


def as_hub_dataset(name: str, folder: Path) -> datasets.DatasetDict:
    """These files as `nyu-mll/glue` would hold them: its column names and label types."""
    entry = GLUE[name]
    label: Any = datasets.Value("float32")
    if entry.task.label_names is not None:
        label = datasets.ClassLabel(names=list(entry.task.label_names))
    splits = {}
    for split, rows in read_files(entry, folder).items():
        columns = dict(zip(entry.hub_texts, rows.columns.values()))
        features = {column: datasets.Value("string") for column in columns} | {"label": label}
        features["idx"] = datasets.Value("int32")
        splits[split] = datasets.Dataset.from_dict(
            {**columns, "label": rows.columns["label"], "idx": range(len(rows))}, features=datasets.Features(features)
        )
    splits["test"] = splits["train"].map(lambda row: {"label": -1}) if entry.task.label_names else splits["train"]
    return datasets.DatasetDict(splits)


@pytest.mark.parametrize("name", GLUE)
def test_the_hub_gives_the_same_data_as_the_files(
    glue_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    asked = []

    def load_dataset(*arguments: str) -> datasets.DatasetDict:
        asked.append(arguments)
        return as_hub_dataset(name, glue_folder)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_hub, from_files = load_task(name), load_task(name, data_dir=str(glue_folder))
    assert asked == [("nyu-mll/glue", name)]
    assert list(from_hub.evaluation) == list(from_files.evaluation)
    assert from_hub.fingerprint == from_files.fingerprint
    for split, rows in from_files.evaluation.items():
        assert from_hub.evaluation[split].to_dict() == rows.to_dict()
    assert from_hub.train.to_dict() == from_files.train.to_dict()


def test_without_a_network_the_remedy_is_named() -> None:
    with pytest.raises(DataNotFoundError, match=r"cannot load nyu-mll/glue \(rte\) .* as data_dir"):
        load_task("rte")


def test_hub_columns_of_each_task() -> None:
    """As the data set's card lists them; they cannot be asked for offline."""
    assert {name: entry.hub_texts for name, entry in GLUE.items()} == {
        "cola": ("sentence",),
        "sst2": ("sentence",),
        "mrpc": ("sentence1", "sentence2"),
        "stsb": ("sentence1", "sentence2"),
        "qqp": ("question1", "question2"),
        "mnli": ("premise", "hypothesis"),
        "qnli": ("question", "sentence"),
        "rte": ("sentence1", "sentence2"),
        "wnli": ("sentence1", "sentence2"),
    }


def edited(folder: Path, target: Path, file: str, old: str, new: str) -> str:
    shutil.copytree(folder, target)
    path = target / file
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")
    return str(target)


@pytest.mark.parametrize(
    ("task", "file", "old", "new", "message"),
    [
        (
            "rte", "RTE/dev.tsv", "\tnot_entailment\n", "\tentailmnt\n",
            r"RTE/dev\.tsv, line 3: .*'entailmnt'; did you mean 'entailment'.*rte",
        ),
        ("rte", "RTE/train.tsv", "\tentailment\n", "\n", r"RTE/train\.tsv, line 2: expected 4 fields \(index, "),
        (
            "rte", "RTE/train.tsv", "sentence2\tlabel", "sentence_2\tlabel",
            r"RTE/train\.tsv, line 1: .*sentence1, sentence2, label; .*index, sentence1, sentence_2, label\. .*: sentence2",
        ),
        (
            "cola", "CoLA/train.tsv", "own\t0\t*\t", "own\t2\t*\t",
            r"CoLA/train\.tsv, line 1: .*'2'\. .*cola .*0, 1",
        ),
        ("stsb", "STS-B/dev.tsv", "\t5.000\n", "\tfive\n", r"line 2: .*'five' .*number"),
    ],
)  # fmt: skip
def test_errors_name_file_and_line(
    glue_folder: Path, tmp_path: Path, task: str, file: str, old: str, new: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_task(task, data_dir=edited(glue_folder, tmp_path / "glue", file, old, new))


def test_another_tasks_folder_is_noticed(glue_folder: Path) -> None:
    with pytest.raises(DataError, match="columns sentence, label; .*index, sentence1"):
        load_task("sst2", data_dir=str(glue_folder / "RTE"))
    with pytest.raises(DataError, match="label '1'.*rte"):
        load_task("rte", data_dir=str(glue_folder / "WNLI"))


def test_an_empty_file(glue_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(glue_folder / "SST-2", tmp_path / "SST-2")
    (folder / "dev.tsv").write_text("")
    with pytest.raises(DataError, match=r"dev\.tsv: the file is empty"):
        load_task("sst2", data_dir=str(tmp_path))


def test_missing_files_are_listed(glue_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(glue_folder / "MNLI", tmp_path / "MNLI")
    (tmp_path / "MNLI/dev_mismatched.tsv").unlink()
    with pytest.raises(DataNotFoundError) as error:
        load_task("mnli", data_dir=str(tmp_path))
    assert "needs train.tsv and dev_matched.tsv and dev_mismatched.tsv" in str(error.value)
    assert f"{tmp_path}/MNLI (without dev_mismatched.tsv)" in str(error.value)
    assert f"{tmp_path}/mnli (no such folder)" in str(error.value)
    with pytest.raises(DataNotFoundError, match="data_dir: .*nowhere"):
        load_task("mnli", data_dir=str(tmp_path / "nowhere"))


def test_incomplete_lines_of_qqp_are_left_out(glue_folder: Path, tmp_path: Path) -> None:
    whole = read_files(GLUE["qqp"], glue_folder)["train"]
    folder = edited(glue_folder, tmp_path / "glue", "QQP/train.tsv", "\tThe dog is also", "\nThe dog is also")
    rows = read_files(GLUE["qqp"], folder)["train"]
    assert rows.columns["text_a"] == whole.columns["text_a"][1:]


@pytest.mark.parametrize(
    ("name", "train", "validation", "text", "label"),
    [
        ("rte", 2490, 277, "No Weapons of Mass Destruction Found in Iraq Yet.", "not_entailment"),
        ("sst2", 67349, 872, "hide new secretions from the parental units ", "negative"),
        ("cola", 8551, 1043, "Our friends won't buy this analysis, let alone the next one we propose.", "acceptable"),
    ],
)
def test_the_real_files(
    real_glue: Callable[[str], Path], name: str, train: int, validation: int, text: str, label: str
) -> None:
    data = load_task(name, data_dir=str(real_glue(GLUE[name].folders[0])))
    assert (len(data.train), len(data.evaluation["validation"])) == (train, validation)  # GLUE's published sizes
    assert data.train[0]["text_a"] == text
    assert data.label_names is not None
    assert data.label_names[data.train[0]["label"]] == label
