"""The registered tasks, and finding a task by the name that the user wrote. Reads no data; `loading` does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from glora.experiments.data.custom_data import looks_like_custom_data, parse_custom_data
from glora.experiments.data.generative import GENERATIVE
from glora.experiments.data.glue import GLUE
from glora.experiments.data.source import LoadHub, Source
from glora.experiments.data.stdlib_docs import StdlibDocs
from glora.experiments.data.task import DataError, Examples, Kind, Task
from glora.messages import did_you_mean, plain

_ALL: tuple[Source, ...] = (StdlibDocs(), *GLUE, *GENERATIVE)
SOURCES: dict[str, Source] = {source.task.name: source for source in _ALL}
TASKS: dict[str, Task] = {name: source.task for name, source in SOURCES.items()}


class UnknownTaskError(ValueError):
    """A name that is neither a task nor a data file."""


@dataclass(frozen=True)
class ResolvedTask:
    """A task that was found but not read.

    Attributes:
        name: the registered name, or the path of custom data as the user wrote it.
        kind: of the task.
        read: reads the task from `load_hub`, or from its files; with `only_train` the training examples alone.
    """

    name: str
    kind: Kind
    read: Callable[..., tuple[Task, Mapping[str, Examples]]]


def resolve_task(name: str, data_dir: str | None = None) -> ResolvedTask:
    """Find a task, and its files if it has any, without reading them.

    Args:
        name: a name of `TASKS` ("SST-2" and "GLUE MNLI" are understood), the hub id of a generative task, or the path of
            custom data as `custom_data` describes it.
        data_dir: folder with GLUE's TSV files, or with a generative task's files; by default they come from the hub.

    Raises:
        UnknownTaskError: there is no such task; names the nearest.
        DataNotFoundError: a file is missing; lists the places searched.
        DataError: `data_dir` for a task that reads no files from it, or an ambiguous path.
    """
    task = find_task(name)
    if task is not None:
        source = SOURCES[task.name]
        if data_dir is not None:
            source.find_files(data_dir)

        def read(load_hub: LoadHub, *, only_train: bool = False) -> tuple[Task, Mapping[str, Examples]]:
            return task, source.read(data_dir, load_hub, only_train=only_train)

        return ResolvedTask(task.name, task.kind, read)
    if looks_like_custom_data(name):
        if data_dir is not None:
            raise DataError(f"data_dir={data_dir!r} is not for custom data such as {name!r}; leave it out.")
        data = parse_custom_data(name)
        return ResolvedTask(name, data.kind, lambda _, *, only_train=False: data.read(name, only_train=only_train))
    raise UnknownTaskError(
        f"unknown task {name!r}{did_you_mean(_plain(name), TASKS)}. Tasks: {', '.join(TASKS)}; or a data file such as "
        "data/train.csv (`glora list tasks` says more)."
    )


def reads_data_dir(task: str) -> bool:
    """Return whether a task can be read from a folder with its files."""
    return task in TASKS and TASKS[task].source is not None


def find_task(name: str) -> Task | None:
    """Return the registered task of this name, alias or hub id, in any case and with any separators.

    None for a path, though `./rte` is spelled like `rte`.
    """
    if name.startswith((".", "~", "/")):
        return None
    written = [task for task in TASKS.values() if task.kind == "generation"]
    spelled = {plain(spelling): task for task in written for spelling in (task.name, str(task.source), *task.aliases)}
    if plain(name) in spelled:
        return spelled[plain(name)]
    if looks_like_custom_data(name) and name not in TASKS and not name.lower().startswith("glue/"):
        return None
    return {_plain(task.name): task for task in TASKS.values()}.get(_plain(name))


def _plain(name: str) -> str:
    """`GLUE SST-2` -> `sst2`, `STS-B` -> `stsb`, `stdlib_docs` -> `stdlibdocs`."""
    return plain(re.sub(r"^\s*glue[\s/:_-]+", "", name.lower()))
