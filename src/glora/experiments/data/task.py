"""A task before it is loaded (`Task`) and after (`TaskData`), and its examples as readers return them (`Rows`)."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset
    from typing_extensions import Self

CLASSIFICATION_METRICS = ("accuracy", "matthews_correlation")
REGRESSION_METRICS = ("pearson", "spearman")
EXACT_MATCH_METRICS = ("exact_match", "loss", "perplexity")
LOSS_METRICS = ("loss", "perplexity")

Kind = Literal["classification", "generation"]
"""A task's target: a label (class or number), or a written answer."""
Scoring = Literal["final_number", "boxed"]
"""The part of a written answer that is compared; see `answers`."""

LIMIT_SEED = 0
"""Seed of the order in which limited examples are drawn; the same in every run."""


class DataError(ValueError):
    """A data file that cannot be used; the message names the file, the line and the fix."""


class DataNotFoundError(FileNotFoundError):
    """A data file that does not exist; the message lists the places searched."""


@dataclass(frozen=True)
class Task:
    """A task's description, known without loading anything."""

    name: str
    summary: str
    metrics: tuple[str, ...]
    """The first one judges the task."""
    label_names: tuple[str, ...] | None = None
    """Classes in the order of their numbers; None means regression, or written answers."""
    evaluation_splits: tuple[str, ...] = ("validation",)
    kind: Kind = "classification"
    scoring: Scoring | None = None
    """The comparison of written answers; None where only their loss is measured."""
    source: str | None = None
    """Hub id; None where the task is not on the hub."""
    aliases: tuple[str, ...] = ()
    reading: str = ""
    """The interpretation of the training examples in one line: classes with counts, or a range. Empty until they are read."""

    @property
    def primary_metric(self) -> str:
        """The metric that judges the task."""
        return self.metrics[0]

    @property
    def regression(self) -> bool:
        """Return whether the label is a number to predict, not a class."""
        return self.kind == "classification" and self.label_names is None

    @property
    def num_labels(self) -> int:
        """Number of the model's outputs: classes, or 1 in regression."""
        return 1 if self.label_names is None else len(self.label_names)


@dataclass(frozen=True, kw_only=True)
class TaskData(Task):
    """A loaded task.

    Where a label is learned, every split has the columns `text_a`, `text_b` for pairs, and `label`; otherwise `prompt`
    (messages) and `answer`.
    """

    train: Dataset
    evaluation: dict[str, Dataset]
    """Split name -> examples. The first split is the one reported."""
    fingerprint: str
    """SHA-256 over the examples used, in order, and the class names: equal data, equal fingerprint."""

    @property
    def example_counts(self) -> dict[str, int]:
        """Split -> number of examples, "train" first."""
        return {"train": len(self.train)} | {name: len(split) for name, split in self.evaluation.items()}

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Names of the columns to tokenize, where a label is learned."""
        return tuple(name for name in self.train.column_names if name.startswith("text_"))


class Examples(Protocol):
    """A split as a reader returns it."""

    def __len__(self) -> int: ...

    @property
    def groups(self) -> Sequence[str] | None:
        """The group of each example; a group belongs to one split. None if the task has no groups."""
        ...

    def at(self, indices: Sequence[int]) -> Self:
        """Return the examples at these positions, in this order."""
        ...

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return the columns of the data set."""
        ...

    def contents(self, task: Task) -> Iterator[str]:
        """Yield everything that the fingerprint covers, as texts."""
        ...


E = TypeVar("E", bound=Examples)
LoadHub = Callable[[str, "str | None"], Mapping[str, Any]]
"""Load a hub data set by its id and configuration: split -> rows."""


class Source(Protocol):
    """A registered task's origin: the files or the hub data set from which its splits are read."""

    @property
    def task(self) -> Task:
        """Its description."""
        ...

    def find_files(self, data_dir: str) -> object:
        """Find the task's files, or raise DataNotFoundError or DataError."""
        ...

    def read(self, data_dir: str | None, load_hub: LoadHub, *, only_train: bool) -> Mapping[str, Examples]:
        """Return split -> examples, `train` first; from the hub if there is no data_dir."""
        ...


def limited(examples: E, limit: int | None) -> E:
    """Keep `limit` examples, the same in every run; a smaller limit keeps a subset of a larger one."""
    if limit is None or limit >= len(examples):
        return examples
    order = list(range(len(examples)))
    random.Random(LIMIT_SEED).shuffle(order)
    return examples.at(sorted(order[:limit]))


@dataclass
class Rows:
    """Labelled examples as columns of plain Python values.

    Attributes:
        text_a: the first text.
        text_b: the second text; None where a task has one text.
        labels: class numbers, or floats in regression.
        groups: the group of each example; see `Examples`.
    """

    text_a: list[str] = field(default_factory=list)
    text_b: list[str] | None = None
    labels: list[int] | list[float] = field(default_factory=list)
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.text_a)

    def at(self, indices: Sequence[int]) -> Rows:
        """Return the rows at these positions, in this order."""
        lists = (self.text_a, self.text_b, self.labels, self.groups)
        return Rows(*(None if values is None else [values[i] for i in indices] for values in lists))  # type: ignore[arg-type]

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return `text_a`, `text_b` where there is one, and `label`."""
        second = {} if self.text_b is None else {"text_b": self.text_b}
        return {"text_a": self.text_a, **second, "label": self.labels}

    def contents(self, task: Task) -> Iterator[str]:
        """Yield the texts, column by column, then the labels."""
        yield from self.text_a
        yield from self.text_b or []
        # scores as float32, as in the data set: the hub keeps 32 bits, a file three digits
        yield repr(self.labels if task.label_names is not None else array("f", self.labels).tolist())
