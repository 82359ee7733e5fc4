"""A task before it is loaded (`Task`) and after (`TaskData`), and its examples as readers return them (`Examples`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datasets import Dataset

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

    def judged_by_loss(self) -> Task:
        """Return the task without written answers: the loss of the reference answers judges it."""
        return replace(self, metrics=LOSS_METRICS, scoring=None)

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


@dataclass(frozen=True)
class Examples:
    """A split as its reader returns it.

    Attributes:
        columns: name -> plain Python values: `text_a`, `text_b` for pairs, and `label` (class numbers, or floats in
            regression); or `prompt` (messages) and `answer`.
        groups: the group of each example; a group belongs to one split. None if the task has no groups.
    """

    columns: dict[str, list[Any]]
    groups: list[str] | None = None

    @classmethod
    def labelled(cls, texts: Sequence[list[str]], labels: list[Any], groups: list[str] | None = None) -> Examples:
        """Return examples of one text or of two, with labels."""
        return cls({**dict(zip(("text_a", "text_b"), texts)), "label": labels}, groups)

    @classmethod
    def joined(cls, parts: Sequence[Examples]) -> Examples:
        """Return the examples of several files, in their order."""
        columns = {name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns}
        return cls(columns, [group for part in parts for group in part.groups or ()] or None)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def at(self, indices: Sequence[int]) -> Examples:
        """Return the examples at these positions, in this order."""
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Examples(columns, None if self.groups is None else [self.groups[i] for i in indices])


def limited(examples: Examples, limit: int | None) -> Examples:
    """Keep `limit` examples, the same in every run; a smaller limit keeps a subset of a larger one."""
    if limit is None or limit >= len(examples):
        return examples
    order = list(range(len(examples)))
    random.Random(LIMIT_SEED).shuffle(order)
    return examples.at(sorted(order[:limit]))
