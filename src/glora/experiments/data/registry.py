"""The tasks there are, and loading one by the name that the user wrote.

Describing the tasks is light; data is read, and heavy packages imported, only by `load_task`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

from glora.experiments.data import custom_tables as custom_data
from glora.experiments.data import generative_tasks, glue, stdlib_docs
from glora.experiments.data.task import DataError, Examples, Kind, Rows, Task, TaskData, build_task_data, limited
from glora.experiments.data.tuning_split import TUNING_SPLIT, hold_out

__all__ = ["TASKS", "ResolvedTask", "Task", "TaskData", "UnknownTaskError", "load_task", "resolve_task"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        stdlib_docs.STDLIB_DOCS,
        *(entry.task for entry in glue.GLUE.values()),
        *(entry.task for entry in generative_tasks.GENERATIVE_TASKS.values()),
    )
}


class UnknownTaskError(ValueError):
    """The name is no task and no data file."""


@dataclass(frozen=True)
class ResolvedTask:
    """A task that has been found but not read."""

    name: str
    """The registered name, or what the user wrote for data of one's own."""
    kind: Kind
    read: Callable[..., tuple[Task, Mapping[str, Examples]]]
    """Reads it: the task, and split name -> examples, `train` first and, unless `only_train`, those to evaluate on."""


def resolve_task(name: str, data_dir: str | None = None) -> ResolvedTask:
    """Find a task, and its files where it has any, without reading them.

    Args:
        name: a name of `TASKS` ("SST-2" and "GLUE MNLI" are understood), the hub id of a generative task, or a data file or
            folder of one's own as `custom_data` describes.
        data_dir: folder with GLUE's own TSV files, or with a generative task's files; without it they come from the hub.

    Raises:
        UnknownTaskError: no such task, naming the nearest.
        DataNotFoundError: a file is missing, listing what was looked for.
        DataError: `data_dir` with a task that reads no files from it, or a path that is not clear.
    """
    registered = _find_registered(name)
    if registered is not None:
        source: ModuleType
        entry: glue.GlueTask | generative_tasks.GenerativeTask
        if registered in glue.GLUE:
            source, entry = glue, glue.GLUE[registered]
        elif registered in generative_tasks.GENERATIVE_TASKS:
            source, entry = generative_tasks, generative_tasks.GENERATIVE_TASKS[registered]
        else:
            _refuse_data_dir(data_dir, f"{registered} is read from Python's own library")
            return ResolvedTask(registered, "classification", _read_stdlib_docs)
        if data_dir is None:
            return ResolvedTask(
                registered,
                entry.task.kind,
                lambda only_train=False: (entry.task, source.read_hub(entry, only_train=only_train)),
            )
        source.find_files(entry, data_dir)
        return ResolvedTask(
            registered,
            entry.task.kind,
            lambda only_train=False: (entry.task, source.read_files(entry, data_dir, only_train=only_train)),
        )
    if custom_data.looks_like_own_data(name):
        _refuse_data_dir(data_dir, "a data file of one's own is given by its whole path")
        data = custom_data.parse_own_data(name)
        return ResolvedTask(
            name,
            custom_data.kind_of(data),
            lambda only_train=False: custom_data.read_own_data(data, name, only_train=only_train),
        )
    near = difflib.get_close_matches(_plain(name), {_plain(task): task for task in TASKS}, n=3, cutoff=0.5)
    hint = ", ".join(task for task in TASKS if _plain(task) in near)
    raise UnknownTaskError(
        f"unknown task {name!r}." + (f" Nearest: {hint}." if hint else "") + f" Tasks: {', '.join(TASKS)}; or a "
        "data file of one's own, such as data/train.csv (`glora list tasks` says more)."
    )


def load_task(
    name: str,
    *,
    data_dir: str | None = None,
    train_limit: int | None = None,
    eval_limit: int | None = None,
    held_out: float | None = None,
) -> TaskData:
    """Load a task.

    Args:
        name: as for `resolve_task`.
        data_dir: as for `resolve_task`.
        train_limit: use at most this many training examples, drawn in an order that is the same in every run; a
            smaller limit draws a part of what a larger one draws. At least 1.
        eval_limit: the same for every split to evaluate on.
        held_out: evaluate on this share of the training examples, which are then not trained on; the task's own
            evaluation splits are not read.

    Raises:
        UnknownTaskError, DataNotFoundError, DataError: see `resolve_task`; and a line that is malformed or has an
            unknown label, or a share that leaves nothing.
        ValueError: a limit below 1.
    """
    for argument, limit in (("train_limit", train_limit), ("eval_limit", eval_limit)):
        if limit is not None and limit < 1:
            raise ValueError(f"{argument}={limit}: at least 1 example is needed; leave it out to use all.")
    task, read = resolve_task(name, data_dir).read(only_train=held_out is not None)
    splits = dict(read)
    train = splits.pop("train")
    if held_out is not None:
        train, tuning = hold_out(limited(train, train_limit), held_out)
        return build_task_data(task, train, {TUNING_SPLIT: tuning}, eval_limit=eval_limit)
    return build_task_data(task, train, splits, train_limit=train_limit, eval_limit=eval_limit)


def _plain(name: str) -> str:
    """`GLUE SST-2` -> `sst2`, `STS-B` -> `stsb`, `stdlib_docs` -> `stdlibdocs`."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^\s*glue[\s/:_-]+", "", name.lower()))


def _find_registered(name: str) -> str | None:
    """The registered name that this is a spelling of; a path is none, though `./rte` is spelled like `rte`."""
    generative = generative_tasks.find_generative_task(name)
    if generative is not None:
        return generative.task.name
    if custom_data.looks_like_own_data(name) and name not in TASKS and not name.lower().startswith("glue/"):
        return None
    return {_plain(task): task for task in TASKS}.get(_plain(name))


def _read_stdlib_docs(only_train: bool = False) -> tuple[Task, dict[str, Rows]]:
    splits = stdlib_docs.load_splits()
    return stdlib_docs.STDLIB_DOCS, {s: splits[s] for s in ("train", "validation") if s == "train" or not only_train}


def _refuse_data_dir(data_dir: str | None, reason: str) -> None:
    if data_dir is not None:
        raise DataError(
            f"data_dir={data_dir!r} is for the tasks of GLUE and the generative ones: {reason}. Leave it out."
        )
