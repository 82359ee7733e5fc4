"""Data of one's own: what is guessed, what is refused, and the string that names it on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from glora.experiments.data.custom_tables import OwnData, custom_task, looks_like_own_data, parse_own_data
from glora.experiments.data.registry import load_task
from glora.experiments.data.task import DataError, DataNotFoundError, TaskData

PAIRS = [("a cat", "an animal", "yes"), ("a cat", "a dog", "no"), ("a dog", "an animal", "yes")]


def write_pairs(path: Path, columns: tuple[str, ...] = ("premise", "hypothesis", "label")) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in PAIRS))
    elif path.suffix == ".parquet":
        table = {name: [row[i] for row in PAIRS] for i, name in enumerate(columns)}
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    else:
        separator = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join(separator.join(row) for row in (columns, *PAIRS)) + "\n")
    return path


def write_labels(folder: Path, train: list[str], validation: list[str]) -> tuple[Path, Path]:
    paths = folder / "train.csv", folder / "validation.csv"
    for path, labels in zip(paths, (train, validation), strict=True):
        path.write_text("text,label\n" + "".join(f"t{i},{label}\n" for i, label in enumerate(labels)))
    return paths


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_data(tmp_path: Path, suffix: str) -> None:
    train = write_pairs(tmp_path / f"train{suffix}")
    validation = write_pairs(tmp_path / f"validation{suffix}")
    data = custom_task(train, validation, text_columns=("premise", "hypothesis"), label_column="label")
    assert data.train.to_dict() == {
        "text_a": ["a cat", "a cat", "a dog"],
        "text_b": ["an animal", "a dog", "an animal"],
        "label": [1, 0, 1],
    }
    assert data.label_names == ("no", "yes")
    assert data.metrics == ("accuracy", "matthews_correlation")
    assert data.name == str(train)
    assert data.fingerprint == load_task(str(train)).fingerprint
    limited = custom_task(train, validation, train_limit=2, eval_limit=1)
    assert (len(limited.train), len(limited.evaluation["validation"])) == (2, 1)


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    train, validation = write_pairs(tmp_path / "train.jsonl"), write_pairs(tmp_path / "dev.parquet")
    assert custom_task(train, validation).evaluation["validation"]["label"][:] == [1, 0, 1]


# labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["10", "9", "-1", "9"], ("-1", "9", "10")),  # integers by value
        (["b", "a", "b", "10"], ("10", "a", "b")),  # strings by alphabet
        (["1.0", "x", "1.0", "x"], ("1.0", "x")),
        (["nan", "inf", "nan", "inf"], ("inf", "nan")),  # words, not numbers
    ],
)
def test_integers_and_strings_are_classes(tmp_path: Path, labels: list[str], names: tuple[str, ...]) -> None:
    data = custom_task(*write_labels(tmp_path, labels, labels))
    assert data.label_names == names
    assert [names[i] for i in data.train["label"]] == labels


def test_decimal_numbers_make_a_regression(tmp_path: Path) -> None:
    data = custom_task(*write_labels(tmp_path, ["4.5", "3", "-1e-1"], ["2", "7.25"]))
    assert data.regression
    assert data.train["label"][:] == pytest.approx([4.5, 3.0, -0.1])
    assert data.evaluation["validation"]["label"][:] == [2.0, 7.25]
    assert (data.metrics, data.primary_metric) == (("pearson", "spearman"), "pearson")


def test_json_types_decide(tmp_path: Path) -> None:
    def task(*labels: object) -> TaskData:
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps({"text": "t", "label": label}) + "\n" for label in labels))
        return custom_task(path, path)

    assert task(1, 0.5, 2).train["label"][:] == [1.0, 0.5, 2.0]
    assert task("0.5", "1.5").label_names == ("0.5", "1.5")  # strings are classes whatever they look like
    assert task(True, False, True).label_names == ("False", "True")
    with pytest.raises(DataError, match=r"line 2: the label \[1\] is a list; labels are all strings, all integers"):
        task("a", [1])
    with pytest.raises(DataError, match=r"line 2: the label 0\.5 is a float"):
        task("a", 0.5)
    with pytest.raises(DataError, match="line 2: the label True is not a number"):
        task(0.5, True)
    with pytest.raises(DataError, match="line 1: the label column 'label' is empty"):
        task(None, "a")


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (
            ["a", "b"],
            ["a", "c"],
            r"validation\.csv, line 3: the label 'c' does not occur in train\.csv; the labels are a, b",
        ),
        (["0.5", "1.5"], ["0.5", "high"], r"validation\.csv, line 3: the label 'high' is not a number"),
        (["a", "a"], ["a"], r"train\.csv: every row has the label 'a'"),
        (["a", "", "b"], ["a"], r"train\.csv, line 3: the label column 'label' is empty"),
        ([str(i) for i in range(60)], ["1"], r"60 different labels in 60 rows, which are hardly classes"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, train: list[str], validation: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        custom_task(*write_labels(tmp_path, train, validation))


def test_a_text_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "x", "label": 1}\n{"text": null, "label": 0}\n')
    with pytest.raises(DataError, match="line 2: the text column 'text' holds None"):
        custom_task(path, path)


# columns


@pytest.mark.parametrize(
    ("header", "texts", "label"),
    [
        ("premise,hypothesis,genre,label", ("premise", "hypothesis"), "label"),
        ("id,Sentence1,Sentence2,gold_label", ("Sentence1", "Sentence2"), "gold_label"),
        ("question,sentence,label", ("question", "sentence"), "label"),
        ("text,author,label", ("text",), "label"),
        ("remark,score", ("remark",), "score"),
    ],
)
def test_columns_are_guessed(tmp_path: Path, header: str, texts: tuple[str, ...], label: str) -> None:
    path = tmp_path / "train.csv"
    columns = header.split(",")
    path.write_text(header + "\n" + "\n".join(",".join(f"{c} {i}" for c in columns) for i in (0, 1)) + "\n")
    data = custom_task(path, path)
    assert data.train[1] == {
        **{f"text_{'ab'[i]}": f"{name} 1" for i, name in enumerate(texts)},
        "label": 1,
    }
    assert data.label_names == (f"{label} 0", f"{label} 1")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,label,score", "cannot tell which column is the label: it may be label or score"),
        ("text,grade", "cannot tell which column is the label: none is called label,"),
        ("text,sentence,label", "cannot tell which columns are the texts: they may be sentence or text"),
        ("title,body,label", "cannot tell which columns are the texts: no usual name is among them"),
    ],
)
def test_ambiguous_columns_are_refused_with_the_way_to_name_them(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(header + "\n" + ",".join("x" for _ in header.split(",")) + "\n")
    with pytest.raises(DataError, match=message) as error:
        custom_task(path, path)
    assert "Name the columns: TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]]" in str(error.value)
    assert f"The file has: {', '.join(header.split(','))}" in str(error.value)


def test_a_missing_column_in_either_file(tmp_path: Path) -> None:
    train, validation = write_labels(tmp_path, ["a", "b"], ["a"])
    with pytest.raises(DataError, match=r"train\.csv: there is no column 'lable'\. Nearest: label"):
        custom_task(train, validation, ["text"], "lable")
    validation.write_text("texts,label\nx,a\n")
    with pytest.raises(DataError, match=r"validation\.csv: there is no column 'text'\. Nearest: texts"):
        custom_task(train, validation)


# the string form


def test_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    train, validation = write_labels(tmp_path / "data", ["a", "b"], ["a"])
    train, validation = train.relative_to(tmp_path), validation.relative_to(tmp_path)
    other = tmp_path / "other.tsv"
    other.write_text("")
    assert parse_own_data("data/train.csv") == OwnData(train, validation)
    assert parse_own_data("data") == OwnData(train, validation)
    assert parse_own_data("data/") == OwnData(train, validation)
    assert parse_own_data("data/train.csv:text") == OwnData(train, validation, ("text",))
    assert parse_own_data("data/train.csv:p, h:gold") == OwnData(train, validation, ("p", "h"), "gold")
    assert parse_own_data("data/train.csv::gold") == OwnData(train, validation, None, "gold")
    assert parse_own_data("data/train.csv,other.tsv:p,h:gold") == OwnData(train, Path("other.tsv"), ("p", "h"), "gold")
    assert parse_own_data("data:text:label") == OwnData(train, validation, ("text",), "label")
    odd = tmp_path / "a,b:c.csv"
    odd.write_text("")
    (tmp_path / "dev.csv").write_text("")
    assert parse_own_data("a,b:c.csv") == OwnData(Path("a,b:c.csv"), Path("dev.csv"))


def test_the_validation_file_is_the_one_whose_name_says_so(tmp_path: Path) -> None:
    train = write_pairs(tmp_path / "train.csv")
    for name in ("val.csv", "dev.jsonl", "dev.csv", "validation.parquet"):  # each takes precedence over the one before
        write_pairs(tmp_path / name)
        assert parse_own_data(str(train)).validation == tmp_path / name


@pytest.mark.parametrize(
    ("files", "text", "error", "message"),
    [
        ((), "train.csv", DataNotFoundError, "there is no data file or folder '.*train.csv'"),
        (
            ("train.csv",),
            "train.csv",
            DataNotFoundError,
            r"no validation file beside it; looked for validation\.csv, dev\.csv, valid\.csv, val\.csv .* tenth",
        ),
        (("train.csv",), "train.csv,gone.csv:text", DataNotFoundError, "there is no data file '.*gone.csv'"),
        (("notes.txt",), "", DataNotFoundError, r"found no data in the folder .*; looked for .*train\.csv"),
        (("train.csv", "train.tsv"), "", DataError, "several files could be meant"),
        (("train.csv", "dev.csv"), "train.csv:a,b,c:label", DataError, "one or two text columns, not 'a,b,c'"),
        (("train.csv", "dev.csv"), "train.csv:a,:label", DataError, "one or two text columns"),
    ],
)
def test_paths_that_cannot_be_used(
    tmp_path: Path, files: tuple[str, ...], text: str, error: type[Exception], message: str
) -> None:
    for name in files:
        write_pairs(tmp_path / name)
    with pytest.raises(error, match=message):
        parse_own_data(f"{tmp_path}/{text}".replace(",gone", f",{tmp_path}/gone"))


def test_a_drive_letter_is_no_path_of_its_own() -> None:
    for text in ("C:\\x.csv", "C:\\x.csv:text", "C:\\x.csv:text:label"):
        with pytest.raises(DataNotFoundError, match=re.escape(repr("C:\\x.csv"))):
            parse_own_data(text)


@pytest.mark.parametrize("name", ["./x", "~/x", "a/b", "x.csv", "x.TSV", "x.jsonl:text:label", "C:\\x.csv:t:l"])
def test_looks_like_own_data(name: str) -> None:
    assert looks_like_own_data(name)


@pytest.mark.parametrize("name", ["rte", "mnlii", "GLUE MNLI", "x.csvs", "", ":text:label"])
def test_does_not_look_like_own_data(name: str) -> None:
    assert not looks_like_own_data(name)
