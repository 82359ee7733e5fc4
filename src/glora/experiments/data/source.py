"""The origin of a registered task: the hub, or files below a folder. Both give tables, of which a task makes examples."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.data.table_files import Table, read_table
from glora.experiments.data.task import DataError, DataNotFoundError, Examples, Task
from glora.paths import expanded

LoadHub = Callable[[str, "str | None"], Mapping[str, Any]]
"""Load a hub data set by its id and configuration: split -> `datasets.Dataset`."""


class Source(abc.ABC):
    """A registered task's origin; this one has no files of its own."""

    task: Task

    def find_files(self, data_dir: str | Path) -> dict[str, list[Path]]:
        """Find the task's files below a folder: split -> paths.

        Raises:
            DataNotFoundError: a file does not exist; lists the places searched.
            DataError: the task has no files.
        """
        raise DataError(f"data_dir={str(data_dir)!r} is not for {self.task.name}, which has no files; leave it out.")

    @abc.abstractmethod
    def read(self, data_dir: str | Path | None, load_hub: LoadHub, *, only_train: bool = False) -> dict[str, Examples]:
        """Return split -> examples, `train` first; from the hub if there is no data_dir.

        Args:
            data_dir: the folder.
            load_hub: loads from the hub.
            only_train: read the training examples alone.

        Raises:
            DataNotFoundError: a file is missing, or the hub cannot be reached.
            DataError: a line is malformed, or it cannot be learned or scored.
        """


@dataclass(frozen=True)
class HubSource(Source):
    """A task on the hub, whose files people also have in a folder.

    Attributes:
        task: its description.
        folders: names of the folders that may hold its files, searched in this order below `data_dir` and before it.
        configs: the hub's configurations; all are read, in this order.
        splits: the splits to read, `train` first.
    """

    task: Task
    folders: tuple[str, ...]
    configs: tuple[str | None, ...]
    splits: tuple[str, ...]

    @abc.abstractmethod
    def split_files(self, folder: Path, split: str) -> list[Path]:
        """Return the files of a split in a folder; none if one is missing."""

    @abc.abstractmethod
    def file_names(self, split: str) -> str:
        """Return the usual names of a split's files, for messages."""

    @abc.abstractmethod
    def examples(self, table: Table, split: str) -> Examples:
        """Return a table's rows as examples."""

    def read_file(self, path: Path) -> Table:
        """Read a file, with the hub's names of its columns."""
        return read_table(path)

    def find_files(self, data_dir: str | Path) -> dict[str, list[Path]]:
        """See `Source`."""
        root = expanded(data_dir)
        if not root.is_dir():
            raise DataNotFoundError(f"data_dir: there is no folder {str(root)!r}.")
        looked = []
        for folder in dict.fromkeys(root / name for name in (*self.folders, "")):
            found = {split: self.split_files(folder, split) for split in self.splits}
            missing = [self.file_names(split) for split, paths in found.items() if not paths]
            if not missing:
                return found
            looked.append(f"{folder} ({'without ' + ', '.join(missing) if folder.is_dir() else 'no such folder'})")
        raise DataNotFoundError(
            f"{self.task.name} needs {' and '.join(map(self.file_names, self.splits))}; looked in {'; '.join(looked)}. Give a "
            f"folder with a copy of {self.task.source} as data_dir."
        )

    def read(self, data_dir: str | Path | None, load_hub: LoadHub, *, only_train: bool = False) -> dict[str, Examples]:
        """See `Source`."""
        splits = self.splits[:1] if only_train else self.splits
        if data_dir is None:
            hub = str(self.task.source)
            loaded = [load_hub(hub, config) for config in self.configs]
            tables = {split: [_hub_table(f"{hub}, {split}", part[split]) for part in loaded] for split in splits}
        else:
            files = self.find_files(data_dir)
            tables = {split: [self.read_file(path) for path in files[split]] for split in splits}
        return {split: Examples.joined([self.examples(t, split) for t in each]) for split, each in tables.items()}


def _hub_table(place: str, rows: Any) -> Table:
    return Table(place, {name: list(rows[name]) for name in rows.column_names}, range(1, len(rows) + 1), "row")
