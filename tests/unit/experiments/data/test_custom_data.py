"""Custom data: what is guessed, what is an error, and the string that names it on the command line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from glora.experiments.data.custom_data import CustomData, looks_like_custom_data, parse_custom_data
from glora.experiments.data.loading import load_task
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


def load(train: Path, validation: Path | None = None, columns: str = "") -> TaskData:
    return load_task(f"{train},{validation or train}{columns}")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_data(tmp_path: Path, suffix: str) -> None:
    train = write_pairs(tmp_path / f"train{suffix}")
    write_pairs(tmp_path / f"validation{suffix}")
    data = load_task(f"{train}:premise,hypothesis:label")
    assert data.train.to_dict() == {
        "text_a": ["a cat", "a cat", "a dog"],
        "text_b": ["an animal", "a dog", "an animal"],
        "label": [1, 0, 1],
    }
    assert (data.label_names, data.metrics) == (("no", "yes"), ("accuracy", "matthews_correlation"))
    guessed = load_task(str(train))
    assert (guessed.name, guessed.fingerprint) == (str(train), data.fingerprint)


def test_formats_may_be_mixed(tmp_path: Path) -> None:
    train, validation = write_pairs(tmp_path / "train.jsonl"), write_pairs(tmp_path / "dev.parquet")
    assert load(train, validation).evaluation["validation"]["label"][:] == [1, 0, 1]


def test_a_text_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "x", "label": 1}\n{"text": null, "label": 0}\n')
    with pytest.raises(DataError, match="line 2: .*'text' holds None"):
        load(path)


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
    data = load(path)
    assert data.train[1] == {
        **{f"text_{'ab'[i]}": f"{name} 1" for i, name in enumerate(texts)},
        "label": 1,
    }
    assert data.label_names == (f"{label} 0", f"{label} 1")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text,label,score", "the label column: .*label or score"),
        ("text,grade", "the label column: none .*label,"),
        ("text,sentence,label", "the text columns: .*sentence or text"),
        ("title,body,label", "the text columns: none "),
    ],
)
def test_ambiguous_columns_are_refused_with_the_way_to_name_them(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(header + "\n" + ",".join("x" for _ in header.split(",")) + "\n")
    with pytest.raises(DataError, match=message) as error:
        load(path)
    assert "Name the columns: TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]]" in str(error.value)
    assert f"The file has: {', '.join(header.split(','))}" in str(error.value)


def test_a_missing_column_in_either_file(tmp_path: Path) -> None:
    train, validation = write_labels(tmp_path, ["a", "b"], ["a"])
    with pytest.raises(DataError, match=r"train\.csv: .*column 'lable'.* mean 'label'"):
        load(train, validation, ":text:lable")
    validation.write_text("texts,label\nx,a\n")
    with pytest.raises(DataError, match=r"validation\.csv: .*column 'text'.* mean 'texts'"):
        load(train, validation)


# the string form


def test_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    train, validation = write_labels(tmp_path / "data", ["a", "b"], ["a"])
    train, validation = train.relative_to(tmp_path), validation.relative_to(tmp_path)
    other = tmp_path / "other.tsv"
    other.write_text("")
    assert parse_custom_data("data/train.csv") == CustomData(train, validation)
    assert parse_custom_data("data") == CustomData(train, validation)
    assert parse_custom_data("data/") == CustomData(train, validation)
    assert parse_custom_data("data/train.csv:text") == CustomData(train, validation, ("text",))
    assert parse_custom_data("data/train.csv:p, h:gold") == CustomData(train, validation, ("p", "h"), "gold")
    assert parse_custom_data("data/train.csv::gold") == CustomData(train, validation, None, "gold")
    assert parse_custom_data("data/train.csv,other.tsv:p,h:gold") == CustomData(
        train, Path("other.tsv"), ("p", "h"), "gold"
    )
    assert parse_custom_data("data:text:label") == CustomData(train, validation, ("text",), "label")
    odd = tmp_path / "a,b:c.csv"
    odd.write_text("")
    (tmp_path / "dev.csv").write_text("")
    assert parse_custom_data("a,b:c.csv") == CustomData(Path("a,b:c.csv"), Path("dev.csv"))
    (tmp_path / "a,b.csv").write_text("")
    assert parse_custom_data("a,b.csv,dev.csv:text") == CustomData(Path("a,b.csv"), Path("dev.csv"), ("text",))
    shutil.copytree(tmp_path / "data", tmp_path / "c,d")
    for text in ("c,d", "c,d/train.csv"):
        assert looks_like_custom_data(text)
        assert parse_custom_data(text).validation == Path("c,d/validation.csv")


def test_the_validation_file_is_the_one_whose_name_says_so(tmp_path: Path) -> None:
    train = write_pairs(tmp_path / "train.csv")
    for name in ("val.csv", "dev.jsonl", "dev.csv", "validation.parquet"):  # each takes precedence over the one before
        write_pairs(tmp_path / name)
        assert parse_custom_data(str(train)).validation == tmp_path / name


@pytest.mark.parametrize(
    ("files", "text", "error", "message"),
    [
        ((), "train.csv", DataNotFoundError, "no data file or folder '.*train.csv'"),
        (
            ("train.csv",),
            "train.csv",
            DataNotFoundError,
            r"no validation file .*validation\.csv, dev\.csv, valid\.csv, val\.csv .* tenth",
        ),
        (("train.csv",), "train.csv,gone.csv:text", DataNotFoundError, "no data file '.*gone.csv'"),
        (("notes.txt",), "", DataNotFoundError, r"no data in the folder .*train\.csv"),
        (("train.csv", "train.tsv"), "", DataError, "several training files"),
        (("train.csv", "dev.csv"), "train.csv:a,b,c:label", DataError, "two text columns, .*'a,b,c'"),
        (("train.csv", "dev.csv"), "train.csv:a,:label", DataError, "two text columns"),
    ],
)
def test_paths_that_cannot_be_used(
    tmp_path: Path, files: tuple[str, ...], text: str, error: type[Exception], message: str
) -> None:
    for name in files:
        write_pairs(tmp_path / name)
    with pytest.raises(error, match=message):
        parse_custom_data(f"{tmp_path}/{text}".replace(",gone", f",{tmp_path}/gone"))


def test_a_drive_letter_is_no_path_of_its_own() -> None:
    for text in ("C:\\x.csv", "C:\\x.csv:text", "C:\\x.csv:text:label"):
        with pytest.raises(DataNotFoundError, match=re.escape(repr("C:\\x.csv"))):
            parse_custom_data(text)


def test_looks_like_custom_data() -> None:
    for name in ("./x", "~/x", "a/b", "x.csv", "x.TSV", "x.jsonl:text:label", "C:\\x.csv:t:l"):
        assert looks_like_custom_data(name), name
    for name in ("rte", "mnlii", "GLUE MNLI", "x.csvs", "", ":text:label"):
        assert not looks_like_custom_data(name), name
