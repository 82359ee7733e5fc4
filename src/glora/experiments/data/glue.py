"""The nine tasks of GLUE (Wang et al., arXiv:1804.07461), from the hub or from files in GLUE's own TSV layout.

Both sources give the same rows and class numbers, those of `nyu-mll/glue` on the hub. The metrics are GLUE's; classification
reports accuracy and Matthews correlation too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.data.table_files import NUMBER, Table, read_table
from glora.experiments.data.task import (
    CLASSIFICATION_METRICS,
    REGRESSION_METRICS,
    DataError,
    DataNotFoundError,
    LoadHub,
    Rows,
    Task,
)
from glora.paths import expanded

HUB_DATASET = "nyu-mll/glue"
WITH_F1 = ("accuracy", "f1", "matthews_correlation")
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE, with the names that its two sources have for its columns and labels.

    Attributes:
        task: its description.
        folder: name of its folder below GLUE's.
        hub_texts: the hub's columns of text.
        file_texts: the files' columns of text; by default the hub's.
        file_label: the files' column of labels.
        labels_spelled: whether the files spell labels as the class names; if not, 0 and 1.
        header: the columns' names, for files whose first line does not hold them.
        incomplete_rows: the number of incomplete lines to skip: QQP as released has a few, and every reader skips them.
    """

    task: Task
    folder: str
    hub_texts: tuple[str, ...]
    file_texts: tuple[str, ...] = ()
    file_label: str = "label"
    labels_spelled: bool = False
    header: tuple[str, ...] | None = None
    incomplete_rows: int = 0

    @property
    def files(self) -> dict[str, str]:
        """Split -> file name."""
        return {"train": "train.tsv"} | {
            split: f"{split.replace('validation', 'dev')}.tsv" for split in self.task.evaluation_splits
        }

    def find_files(self, data_dir: str | Path) -> dict[str, Path]:
        """Find the files below GLUE's folder, or in the task's own: split -> path.

        Raises:
            DataNotFoundError: a file does not exist; lists the places searched.
        """
        root = expanded(data_dir)
        if not root.is_dir():
            raise DataNotFoundError(f"data_dir: there is no folder {str(root)!r}.")
        looked = []
        for folder in (root / self.folder, root / self.task.name, root):
            paths = {split: folder / name for split, name in self.files.items()}
            missing = [path.name for path in paths.values() if not path.is_file()]
            if not missing:
                return paths
            looked.append(f"{folder} ({'without ' + ', '.join(missing) if folder.is_dir() else 'no such folder'})")
        raise DataNotFoundError(
            f"{self.task.name} needs the files {', '.join(self.files.values())}; looked in {'; '.join(looked)}. Give GLUE's "
            "folder or the task's own as data_dir."
        )

    def read(self, data_dir: str | Path | None, load_hub: LoadHub, *, only_train: bool = False) -> dict[str, Rows]:
        """Read the task, or its training examples alone: split -> rows.

        Raises:
            DataNotFoundError: a file is missing, or the hub cannot be reached.
            DataError: a line is malformed or has an unknown label.
        """
        splits = ("train", *(() if only_train else self.task.evaluation_splits))
        if data_dir is None:
            loaded = load_hub(HUB_DATASET, self.task.name)
            return {
                split: _rows([list(loaded[split][name]) for name in self.hub_texts], list(loaded[split]["label"]))
                for split in splits
            }
        files = self.find_files(data_dir)
        return {split: self._read_file(files[split]) for split in splits}

    def _read_file(self, path: Path) -> Rows:
        texts = self.file_texts or self.hub_texts
        table = read_table(
            path, header=self.header, keep=(*texts, self.file_label), short_rows_skipped=self.incomplete_rows
        )
        labels = [self._label(table, i, value) for i, value in enumerate(table.column(self.file_label))]
        return _rows([table.column(name) for name in texts], labels)

    def _label(self, table: Table, row: int, value: str) -> int | float:
        names = self.task.label_names
        if names is None:
            if not NUMBER.fullmatch(value):
                raise DataError(f"{table.where(row)}: the {self.file_label} {value!r} is not a number.")
            return float(value)
        spellings = names if self.labels_spelled else ("0", "1")
        if value not in spellings:
            raise DataError(
                f"{table.where(row)}: unknown label {value!r}; the labels of {self.task.name} are {', '.join(spellings)}."
            )
        return spellings.index(value)


def _rows(texts: Sequence[list[str]], labels: list[Any]) -> Rows:
    return Rows(text_a=texts[0], text_b=texts[1] if len(texts) == 2 else None, labels=labels)


def _task(
    name: str,
    summary: str,
    label_names: tuple[str, ...] | None,
    *columns: Any,
    metrics: tuple[str, ...] = CLASSIFICATION_METRICS,
    splits: tuple[str, ...] = ("validation",),
    **layout: Any,
) -> GlueTask:
    task = Task(name, summary, metrics, label_names, evaluation_splits=splits, source=HUB_DATASET)
    return GlueTask(task, *columns, **layout)


GLUE: tuple[GlueTask, ...] = (
    _task(
        "cola", "is this sentence grammatical? (8,551 examples)", ("unacceptable", "acceptable"),
        "CoLA", ("sentence",), header=("source", "label", "star", "sentence"), metrics=("matthews_correlation", "accuracy"),
    ),
    _task(
        "sst2", "is this review positive? (67,349 examples)", ("negative", "positive"),
        "SST-2", ("sentence",),
    ),
    _task(
        "mrpc", "do these sentences say the same? (3,668 examples)", ("not_equivalent", "equivalent"),
        "MRPC", SENTENCES, ("#1 String", "#2 String"), "Quality", metrics=WITH_F1,
    ),
    _task(
        "stsb", "how alike are these sentences, 0 to 5? Regression (5,749 examples)", None,
        "STS-B", SENTENCES, file_label="score", metrics=REGRESSION_METRICS,
    ),
    _task(
        "qqp", "do these questions ask the same? (363,846 examples)", ("not_duplicate", "duplicate"),
        "QQP", ("question1", "question2"), file_label="is_duplicate", incomplete_rows=100, metrics=WITH_F1,
    ),
    _task(
        "mnli", "does the premise entail or contradict the hypothesis? Both dev sets (392,702 examples)",
        ("entailment", "neutral", "contradiction"),
        "MNLI", ("premise", "hypothesis"), SENTENCES, "gold_label", labels_spelled=True,
        splits=("validation_matched", "validation_mismatched"),
    ),
    _task(
        "qnli", "does this sentence answer the question? (104,743 examples)", ENTAILMENT,
        "QNLI", ("question", "sentence"), labels_spelled=True,
    ),
    _task(
        "rte", "does the first text entail the second? (2,490 examples)", ENTAILMENT,
        "RTE", SENTENCES, labels_spelled=True,
    ),
    _task(
        "wnli", "does the sentence with its pronoun replaced follow? (635 examples)", ("not_entailment", "entailment"),
        "WNLI", SENTENCES,
    ),
)  # fmt: skip
