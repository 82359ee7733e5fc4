"""What a task is, before it is loaded (`Task`) and after (`TaskData`), whatever its source and kind.

Readers hand over plain examples (`Rows` where a label is learned); here they are limited, become data sets with the same
columns for every task of a kind, and get a fingerprint.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset
    from typing_extensions import Self

CLASSIFICATION_METRICS = ("accuracy", "matthews_correlation")
REGRESSION_METRICS = ("pearson", "spearman")
Kind = Literal["classification", "generation"]
"""What is learned: a label (a class, or a number), or a written answer."""
Scoring = Literal["final_number", "boxed"]
"""What counts of a written answer; see `answer_scoring`."""

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
    """Classes in the order of their numbers; None means regression, or written answers."""
    evaluation_splits: tuple[str, ...] = ("validation",)
    kind: Kind = "classification"
    scoring: Scoring | None = None
    """By what written answers are compared; None where only their loss is measured."""


class Examples(Protocol):
    """A split as a reader hands it over, whatever kind of task it is of."""

    def __len__(self) -> int: ...

    @property
    def groups(self) -> Sequence[str] | None:
        """What examples belong together and should not be divided between two splits, where a task knows it."""
        ...

    def at(self, indices: Sequence[int]) -> Self:
        """The examples at these places, in this order."""
        ...

    def dataset(self, task: Task) -> Dataset:
        """The same as a data set in memory."""
        ...

    def contents(self, task: Task) -> Iterator[str]:
        """All that the examples hold, as texts: what a fingerprint is taken of."""
        ...


def limited(examples: E, limit: int | None) -> E:
    """Keep `limit` examples, the same ones whenever asked; a smaller limit keeps a subset of them."""
    if limit is None or limit >= len(examples):
        return examples
    order = list(range(len(examples)))
    random.Random(LIMIT_SEED).shuffle(order)
    return examples.at(sorted(order[:limit]))


E = TypeVar("E", bound=Examples)


@dataclass
class Rows:
    """Examples as columns of plain Python values.

    `text_b` is None where a task has one text; `labels` are class numbers, or floats in regression; `groups` names
    what examples belong together and should not be divided between two splits, where a task knows it.
    """

    text_a: list[str] = field(default_factory=list)
    text_b: list[str] | None = None
    labels: list[int] | list[float] = field(default_factory=list)
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.text_a)

    def at(self, indices: Sequence[int]) -> Rows:
        """The rows at these places, in this order."""
        return Rows(
            text_a=[self.text_a[i] for i in indices],
            text_b=None if self.text_b is None else [self.text_b[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            groups=None if self.groups is None else [self.groups[i] for i in indices],
        )

    def dataset(self, task: Task) -> Dataset:
        """Columns `text_a`, `text_b` where there is one, and `label`."""
        from datasets import Dataset, Features, Value

        columns: dict[str, Sequence[object]] = {"text_a": self.text_a}
        if self.text_b is not None:
            columns["text_b"] = self.text_b
        features = {name: Value("string") for name in columns}
        features["label"] = Value("float32" if task.label_names is None else "int64")
        return Dataset.from_dict({**columns, "label": self.labels}, features=Features(features))

    def contents(self, task: Task) -> Iterator[str]:
        """The texts, column by column, then the labels."""
        yield from self.text_a
        yield from self.text_b or []
        # in regression as what they become in the data set: the hub keeps 32 bits of a score, a file three digits
        yield repr(self.labels if task.label_names is not None else array("f", self.labels).tolist())


@dataclass(frozen=True)
class TaskData:
    """A task, loaded.

    Where a label is learned, every split has the columns `text_columns` (strings) and `label` (class number, or a float in
    regression).
    """

    name: str
    train: Dataset
    evaluation: dict[str, Dataset]
    """Split name -> examples. The first one is what a single figure refers to."""
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...] | None
    """Classes in the order of their numbers; None means regression, or written answers."""
    metrics: tuple[str, ...]
    primary_metric: str
    fingerprint: str
    """SHA-256 over the examples used, in order, and the class names: equal data, equal fingerprint."""
    kind: Kind = "classification"
    scoring: Scoring | None = None

    @property
    def regression(self) -> bool:
        """Whether the label is a number to be predicted, and not a class."""
        return self.kind == "classification" and self.label_names is None

    @property
    def example_counts(self) -> dict[str, int]:
        """Split -> number of examples, "train" first."""
        return {"train": len(self.train)} | {name: len(split) for name, split in self.evaluation.items()}

    @property
    def num_labels(self) -> int:
        """Number of the model's outputs: classes, or 1 in regression."""
        return 1 if self.label_names is None else len(self.label_names)


def build_task_data(
    task: Task,
    train: Examples,
    evaluation: Mapping[str, Examples],
    *,
    train_limit: int | None = None,
    eval_limit: int | None = None,
) -> TaskData:
    """Limit the examples, take their fingerprint and make in-memory data sets of them."""
    train = limited(train, train_limit)
    evaluation = {name: limited(examples, eval_limit) for name, examples in evaluation.items()}
    data = train.dataset(task)
    return TaskData(
        name=task.name,
        train=data,
        evaluation={name: examples.dataset(task) for name, examples in evaluation.items()},
        text_columns=tuple(name for name in data.column_names if name.startswith("text_")),
        label_names=task.label_names,
        metrics=task.metrics,
        primary_metric=task.primary_metric,
        fingerprint=_fingerprint(task, {"train": train, **evaluation}),
        kind=task.kind,
        scoring=task.scoring,
    )


def _fingerprint(task: Task, splits: Mapping[str, Examples]) -> str:
    """Hash lengths with contents, so that no two different data sets run together into the same bytes."""
    digest = hashlib.sha256()

    def add(text: str) -> None:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)

    add(repr(task.label_names))
    for name, examples in splits.items():
        add(f"{name} {len(examples)}")
        for text in examples.contents(task):
            add(text)
    return digest.hexdigest()
