"""Load a task: find it, read its splits, limit them, and make data sets in memory. The only module that imports `datasets`."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import datasets
from datasets import Dataset, Features, List, Value

from glora.experiments.data.labels import describe
from glora.experiments.data.registry import resolve_task
from glora.experiments.data.task import DataNotFoundError, Examples, Task, TaskData, limited
from glora.experiments.data.tuning_split import TUNING_SPLIT, hold_out

MESSAGES = List({"role": Value("string"), "content": Value("string")})


def load_task(
    name: str,
    *,
    data_dir: str | None = None,
    train_limit: int | None = None,
    eval_limit: int | None = None,
    held_out: float | None = None,
    write_answers: bool = True,
) -> TaskData:
    """Load a task.

    Args:
        name: as for `resolve_task`.
        data_dir: as for `resolve_task`.
        train_limit: use at most this many training examples, drawn in an order that is the same in every run; a
            smaller limit draws a subset of a larger one. At least 1.
        eval_limit: the same for every evaluation split.
        held_out: evaluate on this share of the training examples, which are then not trained on; the task's own
            evaluation splits are not read.
        write_answers: whether written answers are scored, where the task scores them; otherwise their loss judges it.

    Raises:
        UnknownTaskError, DataNotFoundError, DataError: see `resolve_task`; and a malformed line, an unknown label, or a
            share that leaves nothing.
        ValueError: a limit below 1.
    """
    for argument, limit in (("train_limit", train_limit), ("eval_limit", eval_limit)):
        if limit is not None and limit < 1:
            raise ValueError(f"{argument}={limit} must be at least 1; leave it out to use all examples.")
    task, read = resolve_task(name, data_dir).read(load_hub_dataset, only_train=held_out is not None)
    if task.scoring and not write_answers:
        task = task.judged_by_loss()
    splits = dict(read)
    task = task if task.reading else replace(task, reading=describe(task, splits["train"]))
    train = limited(splits.pop("train"), train_limit)
    if held_out is not None:
        train, splits[TUNING_SPLIT] = hold_out(train, held_out)
    return build_task_data(task, train, {name: limited(split, eval_limit) for name, split in splits.items()})


def load_hub_dataset(source: str, config: str | None) -> Any:
    """Load all splits of a data set from the hub, or from the hub's local cache.

    Raises:
        DataNotFoundError: the hub cannot be reached and the cache does not hold it.
    """
    try:
        return datasets.load_dataset(source, config)
    except (OSError, ValueError, RuntimeError) as error:  # offline, the class depends on how far it got
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataNotFoundError(
            f"cannot load {source}{f' ({config})' if config else ''} from the Hugging Face hub: {reason} Without a network, "
            "give a folder with a copy as data_dir."
        ) from error


def build_task_data(task: Task, train: Examples, evaluation: Mapping[str, Examples]) -> TaskData:
    """Compute the examples' fingerprint, and make data sets in memory."""
    return TaskData(
        **vars(task),
        train=_dataset(task, train),
        evaluation={name: _dataset(task, examples) for name, examples in evaluation.items()},
        fingerprint=_fingerprint(task, {"train": train, **evaluation}),
    )


def _dataset(task: Task, examples: Examples) -> Dataset:
    types = {"label": Value("float32" if task.regression else "int64"), "prompt": MESSAGES}
    columns = examples.columns
    return Dataset.from_dict(columns, features=Features({n: types.get(n, Value("string")) for n in columns}))


def _fingerprint(task: Task, splits: Mapping[str, Examples]) -> str:
    """Hash lengths with contents, so that different data never run together into the same bytes."""
    digest = hashlib.sha256()

    def add(text: str) -> None:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)

    add(repr(task.label_names))
    for name, examples in splits.items():
        add(f"{name} {len(examples)}")
        for column, values in examples.columns.items():
            if column == "label":  # scores as float32, as in the data set: the hub keeps 32 bits, a file three digits
                add(repr(array("f", values).tolist() if task.regression else values))
            else:
                for value in values:
                    add(value if isinstance(value, str) else json.dumps(value))
    return digest.hexdigest()
