"""The nine tasks of GLUE (Wang et al., arXiv:1804.07461), from the hub or from files in GLUE's own TSV layout.

Both sources give the same rows and class numbers, those of `nyu-mll/glue` on the hub. The metrics are GLUE's; classification
reports accuracy and Matthews correlation too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glora.experiments.data.source import HubSource
from glora.experiments.data.table_files import NUMBER, Table, read_table
from glora.experiments.data.task import CLASSIFICATION_METRICS, REGRESSION_METRICS, DataError, Examples, Task
from glora.messages import did_you_mean

HUB_DATASET = "nyu-mll/glue"
WITH_F1 = ("accuracy", "f1", "matthews_correlation")
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask(HubSource):
    """A task of GLUE, with the names that its two sources have for its columns and labels.

    Attributes:
        hub_texts: the hub's columns of text.
        file_texts: the files' columns of text; by default the hub's.
        file_label: the files' column of labels.
        labels_spelled: whether the files spell labels as the class names; if not, 0 and 1.
        header: the columns' names, for files whose first line does not hold them.
        incomplete_rows: the number of incomplete lines to skip: QQP as released has a few, and every reader skips them.
    """

    hub_texts: tuple[str, ...]
    file_texts: tuple[str, ...] = ()
    file_label: str = "label"
    labels_spelled: bool = False
    header: tuple[str, ...] | None = None
    incomplete_rows: int = 0

    def file_names(self, split: str) -> str:
        """See `HubSource`."""
        return f"{split.replace('validation', 'dev')}.tsv"

    def split_files(self, folder: Path, split: str) -> list[Path]:
        """See `HubSource`."""
        return [path for path in [folder / self.file_names(split)] if path.is_file()]

    def read_file(self, path: Path) -> Table:
        """See `HubSource`."""
        keep = (*(self.file_texts or self.hub_texts), self.file_label)
        table = read_table(path, header=self.header, keep=keep, short_rows_skipped=self.incomplete_rows)
        return replace(table, columns=dict(zip((*self.hub_texts, "label"), table.columns.values())))

    def examples(self, table: Table, split: str) -> Examples:
        """See `HubSource`."""
        labels = [self._label(table, row, value) for row, value in enumerate(table.columns["label"])]
        return Examples.labelled([table.columns[name] for name in self.hub_texts], labels)

    def _label(self, table: Table, row: int, value: Any) -> int | float:
        names = self.task.label_names
        if not isinstance(value, str):  # the hub's are numbers already
            return value
        if names is None:
            if not NUMBER.fullmatch(value):
                raise DataError(f"{table.where(row)}: the {self.file_label} {value!r} is not a number.")
            return float(value)
        spellings = names if self.labels_spelled else ("0", "1")
        if value not in spellings:
            raise DataError(
                f"{table.where(row)}: unknown label {value!r}{did_you_mean(value, spellings) or '.'} "
                f"The labels of {self.task.name} are {', '.join(spellings)}."
            )
        return spellings.index(value)


def _task(
    name: str,
    summary: str,
    label_names: tuple[str, ...] | None,
    folder: str,
    *columns: Any,
    metrics: tuple[str, ...] = CLASSIFICATION_METRICS,
    splits: tuple[str, ...] = ("validation",),
    **layout: Any,
) -> GlueTask:
    task = Task(name, summary, metrics, label_names, evaluation_splits=splits, source=HUB_DATASET)
    return GlueTask(task, (folder, name), (name,), ("train", *splits), *columns, **layout)


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
