"""The nine tasks of GLUE (Wang et al., arXiv:1804.07461), from the hub or from files in GLUE's own TSV layout.

Both sources give the same rows and the same class numbers, those of `nyu-mll/glue` on the hub. Each task's
metrics are GLUE's; classification reports accuracy and Matthews correlation besides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.data.hub import load_hub_dataset
from glora.experiments.data.table_files import NUMBER, Table, read_tsv
from glora.experiments.data.task import DataError, DataNotFoundError, Rows, Task

HUB_DATASET = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """A task with the names that its two sources have for its columns and labels."""

    task: Task
    folder: str
    """Name of the task's folder below GLUE's."""
    hub_texts: tuple[str, ...]
    file_texts: tuple[str, ...]
    file_label: str
    file_labels: tuple[str, ...] | None
    """How the classes are spelled in the files, in the order of their numbers; None means regression."""
    header: tuple[str, ...] | None = None
    """Column names, for files whose first line does not hold them."""
    incomplete_rows: int = 0
    """How many incomplete lines are left out: QQP as released has a few, and every reader of GLUE skips them."""

    @property
    def files(self) -> dict[str, str]:
        """Split -> file name."""
        names = {"train": "train.tsv"}
        for split in self.task.evaluation_splits:
            names[split] = f"{split.replace('validation', 'dev')}.tsv"
        return names


_ENTAILMENT = ("entailment", "not_entailment")
_ACCURACY = ("accuracy", "matthews_correlation")
_ACCURACY_F1 = ("accuracy", "f1", "matthews_correlation")


GLUE: dict[str, GlueTask] = {
    entry.task.name: entry
    for entry in (
        GlueTask(
            Task(
                "cola",
                "is this sentence grammatical? (8,551 examples)",
                ("matthews_correlation", "accuracy"),
                "matthews_correlation",
                ("unacceptable", "acceptable"),
            ),
            folder="CoLA",
            hub_texts=("sentence",),
            file_texts=("sentence",),
            file_label="label",
            file_labels=("0", "1"),
            header=("source", "label", "star", "sentence"),
        ),
        GlueTask(
            Task(
                "sst2",
                "is this review positive? (67,349 examples)",
                _ACCURACY,
                "accuracy",
                ("negative", "positive"),
            ),
            folder="SST-2",
            hub_texts=("sentence",),
            file_texts=("sentence",),
            file_label="label",
            file_labels=("0", "1"),
        ),
        GlueTask(
            Task(
                "mrpc",
                "do these sentences say the same? (3,668 examples)",
                _ACCURACY_F1,
                "accuracy",
                ("not_equivalent", "equivalent"),
            ),
            folder="MRPC",
            hub_texts=("sentence1", "sentence2"),
            file_texts=("#1 String", "#2 String"),
            file_label="Quality",
            file_labels=("0", "1"),
        ),
        GlueTask(
            Task(
                "stsb",
                "how alike are these sentences, 0 to 5? Regression (5,749 examples)",
                ("pearson", "spearman"),
                "pearson",
                None,
            ),
            folder="STS-B",
            hub_texts=("sentence1", "sentence2"),
            file_texts=("sentence1", "sentence2"),
            file_label="score",
            file_labels=None,
        ),
        GlueTask(
            Task(
                "qqp",
                "do these questions ask the same? (363,846 examples)",
                _ACCURACY_F1,
                "accuracy",
                ("not_duplicate", "duplicate"),
            ),
            folder="QQP",
            hub_texts=("question1", "question2"),
            file_texts=("question1", "question2"),
            file_label="is_duplicate",
            file_labels=("0", "1"),
            incomplete_rows=100,
        ),
        GlueTask(
            Task(
                "mnli",
                "does the premise entail or contradict the hypothesis? Both dev sets (392,702 examples)",
                _ACCURACY,
                "accuracy",
                ("entailment", "neutral", "contradiction"),
                evaluation_splits=("validation_matched", "validation_mismatched"),
            ),
            folder="MNLI",
            hub_texts=("premise", "hypothesis"),
            file_texts=("sentence1", "sentence2"),
            file_label="gold_label",
            file_labels=("entailment", "neutral", "contradiction"),
        ),
        GlueTask(
            Task(
                "qnli",
                "does this sentence answer the question? (104,743 examples)",
                _ACCURACY,
                "accuracy",
                _ENTAILMENT,
            ),
            folder="QNLI",
            hub_texts=("question", "sentence"),
            file_texts=("question", "sentence"),
            file_label="label",
            file_labels=_ENTAILMENT,
        ),
        GlueTask(
            Task(
                "rte",
                "does the first text entail the second? (2,490 examples)",
                _ACCURACY,
                "accuracy",
                _ENTAILMENT,
            ),
            folder="RTE",
            hub_texts=("sentence1", "sentence2"),
            file_texts=("sentence1", "sentence2"),
            file_label="label",
            file_labels=_ENTAILMENT,
        ),
        GlueTask(
            Task(
                "wnli",
                "is the pronoun replaced rightly? (635 examples)",
                _ACCURACY,
                "accuracy",
                ("not_entailment", "entailment"),
            ),
            folder="WNLI",
            hub_texts=("sentence1", "sentence2"),
            file_texts=("sentence1", "sentence2"),
            file_label="label",
            file_labels=("0", "1"),
        ),
    )
}


def find_files(entry: GlueTask, data_dir: str | Path) -> dict[str, Path]:
    """Find a task's files below GLUE's folder, or in the task's own: split -> path.

    Raises:
        DataNotFoundError: listing what was looked for.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataNotFoundError(f"data_dir: there is no folder {str(root)!r}.")
    candidates = [root / entry.folder, root / entry.task.name, root]
    for folder in candidates:
        paths = {split: folder / name for split, name in entry.files.items()}
        if all(path.is_file() for path in paths.values()):
            return paths
    raise DataNotFoundError(
        f"{entry.task.name} needs the files {', '.join(entry.files.values())}; looked in "
        f"{'; '.join(_what_is_missing(folder, entry) for folder in candidates)}. Give GLUE's folder or the task's "
        "own as data_dir."
    )


def _what_is_missing(folder: Path, entry: GlueTask) -> str:
    if not folder.is_dir():
        return f"{folder} (no such folder)"
    missing = [name for name in entry.files.values() if not (folder / name).is_file()]
    return f"{folder} (without {', '.join(missing)})"


def read_files(entry: GlueTask, data_dir: str | Path, *, only_train: bool = False) -> dict[str, Rows]:
    """Read a task, or its training examples alone, from files in GLUE's own layout: split -> rows.

    Raises:
        DataNotFoundError: a file is missing.
        DataError: a line is malformed or has an unknown label.
    """
    files = find_files(entry, data_dir)
    return {split: _read_file(entry, path) for split, path in files.items() if split == "train" or not only_train}


def _read_file(entry: GlueTask, path: Path) -> Rows:
    table = read_tsv(
        path,
        header=entry.header,
        keep=(*entry.file_texts, entry.file_label),
        short_rows_skipped=entry.incomplete_rows,
    )
    parse = _score if entry.file_labels is None else _class_number
    return _rows(
        [table.column(name) for name in entry.file_texts],
        [parse(entry, table, i, value) for i, value in enumerate(table.column(entry.file_label))],
    )


def _class_number(entry: GlueTask, table: Table, row: int, value: str) -> int:
    assert entry.file_labels is not None
    if value not in entry.file_labels:
        raise DataError(
            f"{table.where(row)}: unknown label {value!r}; the labels of {entry.task.name} are "
            f"{', '.join(entry.file_labels)}."
        )
    return entry.file_labels.index(value)


def _score(entry: GlueTask, table: Table, row: int, value: str) -> float:
    if not NUMBER.fullmatch(value):
        raise DataError(f"{table.where(row)}: the {entry.file_label} {value!r} is not a number.")
    return float(value)


def _rows(texts: Sequence[list[str]], labels: list[Any]) -> Rows:
    return Rows(text_a=texts[0], text_b=texts[1] if len(texts) == 2 else None, labels=labels)


def read_hub(entry: GlueTask, *, only_train: bool = False) -> dict[str, Rows]:
    """Read a task, or its training examples alone, from `nyu-mll/glue` on the hub or its local cache: split -> rows.

    Raises:
        DataNotFoundError: the hub cannot be reached and the cache does not hold the task.
    """
    loaded = load_hub_dataset(HUB_DATASET, entry.task.name, entry.task.name, instead="the folder of GLUE's own files")
    splits = {}
    for split in ("train", *(() if only_train else entry.task.evaluation_splits)):
        rows = loaded[split]
        splits[split] = _rows([list(rows[name]) for name in entry.hub_texts], list(rows["label"]))
    return splits
