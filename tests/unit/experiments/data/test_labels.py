"""The kind of a column of labels, the labels that contradict it, and the line that says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from glora.experiments.data.labels import LOOK_ALIKES
from glora.experiments.data.loading import load_task
from glora.experiments.data.task import DataError, TaskData

SCORES = [f"{i % 11 / 2:.1f}" for i in range(200)]
BINARY = ["0", "1"] * 50
WORDS = ["pos", "neg"] * 50


@pytest.fixture
def task_of(tmp_path: Path) -> Any:
    """`task_of(labels)`: the task of files with these labels; text as CSV, other types as JSON lines or Parquet."""

    def write(path: Path, labels: Sequence[Any]) -> Path:
        texts = [f"t{i}" for i in range(len(labels))]
        if path.suffix == ".csv":
            path.write_text(
                "text,label\n" + "".join(f"{t},{label}\n" for t, label in zip(texts, labels)), encoding="utf-8"
            )
        elif path.suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
        else:
            path.write_text("".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in zip(texts, labels)))
        return path

    def load(labels: Sequence[Any], validation: Sequence[Any] | None = None, suffix: str = ".csv") -> TaskData:
        train = write(tmp_path / f"train{suffix}", labels)
        return load_task(f"{train},{write(tmp_path / f'dev{suffix}', labels if validation is None else validation)}")

    return load


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "-1", "9"], ("-1", "9", "10")),  # integers by value
        (["b", "a", "b", "10"], ("10", "a", "b")),  # texts by alphabet
        (["1.0", "x", "1.0", "x"], ("1.0", "x")),
        (["nan", "inf", "nan", "inf"], ("inf", "nan")),  # words, not numbers
        (["é", "e", "é", "e"], ("e", "é")),
        (["1" * 5000, "2", "2"], ("2", "1" * 5000)),
    ],
)
def test_integers_and_texts_are_classes(task_of: Any, labels: list[str], names: tuple[str, ...]) -> None:
    data = task_of(labels)
    assert data.label_names == names
    assert [names[i] for i in data.train["label"]] == labels


def test_decimal_numbers_make_a_regression(task_of: Any) -> None:
    data = task_of(["4.5", "3", "-1e-1"], ["2", "7.25"])
    assert data.regression
    assert data.train["label"][:] == pytest.approx([4.5, 3.0, -0.1])
    assert data.evaluation["validation"]["label"][:] == [2.0, 7.25]
    assert (data.metrics, data.primary_metric) == (("pearson", "spearman"), "pearson")


def test_typed_files_hold_the_same_labels(task_of: Any) -> None:
    assert task_of([1, 0.5, 2], suffix=".jsonl").train["label"][:] == [1.0, 0.5, 2.0]
    assert task_of(SCORES, suffix=".jsonl").train["label"] == task_of(SCORES).train["label"]
    assert task_of(BINARY, suffix=".jsonl").label_names == ("0", "1")
    assert task_of([True, False, True], suffix=".jsonl").label_names == ("False", "True")
    assert task_of([0.5, 1.0], suffix=".parquet").regression


@pytest.mark.parametrize("odd", ["nan", "n/a", "-", "inf", "1e999", "5,0 "])
@pytest.mark.parametrize("usual", [SCORES, BINARY], ids=["scores", "binary"])
def test_one_odd_label_among_numbers_is_an_error(task_of: Any, usual: list[str], odd: str) -> None:
    with pytest.raises(DataError, match=rf"train\.csv, line {len(usual) + 2}: .*not a number"):
        task_of([*usual, f'"{odd}"'])


@pytest.mark.parametrize("odd", ["1.0", "0.5", "1e0", "-0."])
def test_one_decimal_number_does_not_make_integers_a_regression(task_of: Any, odd: str) -> None:
    with pytest.raises(DataError, match=rf"line 102: .*'{odd}' .*integer \(100 "):
        task_of([*BINARY, odd])
    with pytest.raises(DataError, match=r"line 3: .*'1' .*line 6\b.*decimal") as refused:
        task_of(["0.0", "1", "1.0", "0.0", "0", "1.0", "0.0"])
    assert "train.csv" in str(refused.value)


@pytest.mark.parametrize("odd", ["pos ", "Pos", "po s", "pos\u00a0", "ｐos", "po\u200bs", "PO\u017f"])
def test_classes_that_look_alike_are_an_error(task_of: Any, odd: str) -> None:
    with pytest.raises(DataError, match=r"line 102: .*line 103\b.*'pos' .*space, case"):
        task_of([*WORDS, odd, odd])


@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        ("pos", "p\N{CYRILLIC SMALL LETTER O}s"),
        ("POS", "\N{CYRILLIC CAPITAL LETTER ER}os"),
        ("Beta", "\N{GREEK CAPITAL LETTER BETA}eta"),
        ("no\N{LATIN SMALL LETTER E WITH DIAERESIS}l", "no\N{CYRILLIC SMALL LETTER IO}l"),
        ("cop", "\N{CYRILLIC SMALL LETTER ES}\N{CYRILLIC SMALL LETTER O}\N{CYRILLIC SMALL LETTER ER}"),
        ("non-toxic", "non\N{EN DASH}toxic"),
    ],
)
def test_classes_that_differ_by_letters_of_another_script_are_an_error(task_of: Any, usual: str, odd: str) -> None:
    with pytest.raises(DataError, match=r"line 4: .*look alike \(.*\\u"):
        task_of([usual, usual, odd, "other"])


def test_letters_stand_for_letters_of_the_same_case() -> None:
    for other, latin in LOOK_ALIKES.items():
        name = unicodedata.name(chr(other))
        assert ("CAPITAL" in name) == chr(latin).isupper(), name


@pytest.mark.parametrize("labels", [["да", "нет"], ["ναι", "όχι"], ["В", "в́б"], ["cop", "пор"]])
def test_other_scripts_are_classes(task_of: Any, labels: list[str]) -> None:
    assert set(task_of(labels * 5, suffix=".jsonl").label_names) == set(labels)


@pytest.mark.parametrize("odd", ["01", "+1", "-0", "\u0661"])
def test_integers_of_one_value_are_an_error(task_of: Any, odd: str) -> None:
    usual = "0" if odd == "-0" else "1"
    with pytest.raises(DataError, match=f"same integer as '{usual}'"):
        task_of([*BINARY, odd])


@pytest.mark.parametrize("form", ["0,{}", "{}%", "{} %", "1,{}00", "1'{}00", "0.{}%", ",{}"])
def test_numbers_that_cannot_be_read_are_no_classes(task_of: Any, form: str) -> None:
    with pytest.raises(DataError, match="line 1: .*nearly a number.*write numbers with"):
        task_of([form.format(i % 7) for i in range(70)], suffix=".jsonl")


@pytest.mark.parametrize(
    "labels", [["1.2.3", "1.2.4"], ["1,a", "2,b"], ["1/2", "2/3"], ["18-25", "26-40"], ["1 star", "2 stars"]]
)
def test_texts_with_digits_are_classes(task_of: Any, labels: list[str]) -> None:
    assert task_of(labels * 20, suffix=".jsonl").label_names == tuple(labels)


def test_unicode_forms_are_shown_by_their_codes(task_of: Any) -> None:
    with pytest.raises(DataError, match=r"\('e\\u0301', '\\xe9'\)"):
        task_of(["é", "é", "e\u0301"])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, "1"], "line 3: .*'1' .*text, .*number"),
        ([0, 1, True], "line 3: .*True .*true or false"),
        ([0, 1, 1.0], r"line 3: .*1\.0 .*integer"),
        ([0.5, float("nan"), 1.5], "line 2: .*nan .*number"),
        ([0.5, 1e39, 1.5], "line 2: .*1e[+]39 .*number"),
        (["a", [1]], r"line 2: .*\[1\] is a list"),
        ([None, "a"], "line 1: .*'label' is empty"),
        (["a", "\u200b "], "line 2: .*'label' is empty"),
    ],
)
def test_types_that_contradict_each_other(task_of: Any, labels: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(labels, suffix=".jsonl")


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (["a", "b"], ["a", "c"], r"dev\.csv, line 3: .*'c' .*train\.csv.* a, b"),
        (["pos", "neg"], ["p\u043es"], r"train\.csv \('p\\u043es'\).* mean 'pos'"),
        (["pos", "neg"], ["pos "], r"dev\.csv, line 2: .*'pos ' .* mean 'pos'"),
        (["0.5", "1.5"], ["0.5", "high"], r"dev\.csv, line 3: .*'high' .*number"),
        (["0.5", "1.5"], ["0.5", "inf"], r"dev\.csv, line 3: .*'inf' .*number"),
        (["a", "a"], ["a"], r"train\.csv: every row .*'a'"),
        (["a", "", "b"], ["a"], r"train\.csv, line 3: .*'label' is empty"),
        ([str(i) for i in range(60)], ["1"], "60 different labels in 60 rows"),
    ],
)
def test_labels_that_cannot_be_used(task_of: Any, train: list[str], validation: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(train, validation)


def test_the_reading_says_what_the_labels_were_taken_for(task_of: Any, glue_folder: Path) -> None:
    columns = "texts text, labels label"
    assert task_of([*WORDS, "x y"]).reading == (
        f"classification, 3 classes: 'neg' (50), 'pos' (50), 'x y' (1); only once: 'x y' (line 102); {columns}"
    )
    assert task_of(SCORES).reading == f"regression, 0 to 5 (11 different values in 200 examples); {columns}"
    many = task_of([f"c{i:02}" for i in range(20)] * 2 + ["u", "v", "w", "x", "y"])
    assert "'c07' (2), 17 more; only once: 'u' (line 42), 'v' (line 43), 'w' (line 44), 2 more" in many.reading
    rte = load_task("rte", data_dir=str(glue_folder), train_limit=8)
    assert rte.reading == "classification, 2 classes: 'entailment' (96), 'not_entailment' (96)", "before the limit"


def test_neither_class_numbers_nor_fingerprints_depend_on_the_hash_seed(
    tmp_path: Path,
    glue_folder: Path,
    sums_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("train.csv", "validation.csv"):
        labels = ["10", "1", "-1", "9", "+2", "0"] * 2
        (tmp_path / name).write_text("text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels)))
    program = (
        "import sys; from glora.experiments.data.loading import load_task as load\n"
        "own, glue, sums = sys.argv[1:]\n"
        "half = dict(held_out=0.5)\n"
        "for data in (load(own), load(own, **half), load('mnli', data_dir=glue), load('rte', data_dir=glue, **half),\n"
        "    load('stdlib-docs', train_limit=50, **half), load('gsm8k', data_dir=sums, **half)):\n"
        "    print(data.label_names, data.fingerprint, data.reading)"
    )
    arguments = ["-c", str(tmp_path / "train.csv"), str(glue_folder), str(sums_folder)]
    monkeypatch.setattr(sys, "argv", arguments)
    exec(program, {})
    here = capsys.readouterr().out
    other = subprocess.run(
        [sys.executable, arguments[0], program, *arguments[1:]],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # here it is another one
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == here
    assert "('-1', '0', '1', '+2', '9', '10')" in here
