"""What a task is, before it is loaded (`Task`) and after (`TaskData`), whatever its source.

Loaders hand over plain rows (`Rows`); here they become data sets with the same columns for every task, are
limited, and get a fingerprint.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

CLASSIFICATION_METRICS = ("accuracy", "matthews_correlation")
REGRESSION_METRICS = ("pearson", "spearman")
LIMIT_SEED = 0
"""Seed of the order in which limited examples are drawn; the same in every run."""


class DataError(ValueError):
    """A data file that cannot be used as it is; the message names the file, the line and the remedy."""


class DataNotFoundError(FileNotFoundError):
    """A data file that is not there; the message lists what was looked for."""


@dataclass(frozen=True)
class Task:
    """One line of `glora list tasks`: what is known without loading anything."""

    name: str
    summary: str
    metrics: tuple[str, ...]
    primary_metric: str
    label_names: tuple[str, ...] | None
    """Classes in the order of their numbers; None means regression."""
    evaluation_splits: tuple[str, ...] = ("validation",)


@dataclass
class Rows:
    """Examples as columns of plain Python values.

    `text_b` is None where a task has one text; `labels` are class numbers, or floats in regression.
    """

    text_a: list[str] = field(default_factory=list)
    text_b: list[str] | None = None
    labels: list[int] | list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.text_a)

    def limited(self, limit: int | None) -> Rows:
        """Keep `limit` rows, the same ones whenever asked; a smaller limit keeps a subset of them."""
        if limit is None or limit >= len(self):
            return self
        order = list(range(len(self)))
        random.Random(LIMIT_SEED).shuffle(order)
        kept = sorted(order[:limit])
        return Rows(
            text_a=[self.text_a[i] for i in kept],
            text_b=None if self.text_b is None else [self.text_b[i] for i in kept],
            labels=[self.labels[i] for i in kept],
        )


@dataclass(frozen=True)
class TaskData:
    """A task, loaded.

    Every split has the columns `text_columns` (strings) and `label` (class number, or a float in regression).
    """

    name: str
    train: Dataset
    evaluation: dict[str, Dataset]
    """Split name -> examples. The first one is what a single figure refers to."""
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    """Classes in the order of their numbers; None means regression."""
    metrics: tuple[str, ...]
    primary_metric: str
    fingerprint: str
    """SHA-256 over the examples used, in order, and the class names: equal data, equal fingerprint."""

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be predicted, and not a class."""
        return self.label_names is None

    @property
    def num_labels(self) -> int:
        """Number of the model's outputs: classes, or 1 in regression."""
        return 1 if self.label_names is None else len(self.label_names)


def build_task_data(
    task: Task,
    train: Rows,
    evaluation: dict[str, Rows],
    *,
    train_limit: int | None = None,
    eval_limit: int | None = None,
) -> TaskData:
    """Limit the rows, take their fingerprint and make in-memory data sets of them."""
    train = train.limited(train_limit)
    evaluation = {name: rows.limited(eval_limit) for name, rows in evaluation.items()}
    return TaskData(
        name=task.name,
        train=_dataset(train, task),
        evaluation={name: _dataset(rows, task) for name, rows in evaluation.items()},
        text_columns=("text_a",) if train.text_b is None else ("text_a", "text_b"),
        label_names=task.label_names,
        metrics=task.metrics,
        primary_metric=task.primary_metric,
        fingerprint=_fingerprint(task, {"train": train, **evaluation}),
    )


def _dataset(rows: Rows, task: Task) -> Dataset:
    from datasets import Dataset, Features, Value

    columns: dict[str, Sequence[object]] = {"text_a": rows.text_a}
    if rows.text_b is not None:
        columns["text_b"] = rows.text_b
    features = {name: Value("string") for name in columns}
    features["label"] = Value("float32" if task.label_names is None else "int64")
    return Dataset.from_dict({**columns, "label": rows.labels}, features=Features(features))


def _fingerprint(task: Task, splits: dict[str, Rows]) -> str:
    """Hash lengths with contents, so that no two different data sets run together into the same bytes."""
    digest = hashlib.sha256()

    def add(text: str) -> None:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)

    add(repr(task.label_names))
    for name, rows in splits.items():
        add(f"{name} {len(rows)}")
        for column in (rows.text_a, rows.text_b or []):
            for text in column:
                add(text)
        # in regression as what they become in the data set: the hub keeps 32 bits of a score, a file three digits
        add(repr(rows.labels if task.label_names is not None else array("f", rows.labels).tolist()))
    return digest.hexdigest()
