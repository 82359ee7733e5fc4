"""Data sets whose answers are texts: what they are, how an answer is scored, and reading them.

They come from the hub, or from a local folder that is laid out as on the hub (JSON lines, JSON or Parquet) or as the authors
published it. GSM8K and MATH have a training and a test split and nothing else: the test split is scored, and who tunes must
tune on a part of the training split. Alpaca and Dolly are one split: a twentieth of it is held out, chosen by the prompts
(`split_by_prompt`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.data.answer_scoring import SCORINGS
from glora.experiments.data.conversations import Columns, Conversations, read_conversations, split_by_prompt
from glora.experiments.data.hub import load_hub_dataset
from glora.experiments.data.table_files import MISSING, READERS, read_table
from glora.experiments.data.task import DataError, DataNotFoundError, Scoring, Task
from glora.experiments.names import plain
from glora.messages import pluralize

HELD_OUT_SHARE = 0.05
EXACT_MATCH_METRICS = ("exact_match", "loss", "perplexity")
LOSS_METRICS = ("loss", "perplexity")

MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


@dataclass(frozen=True)
class GenerativeTask:
    """A data set whose answers are texts."""

    task: Task
    source: str
    """Hub id."""
    columns: Columns
    aliases: tuple[str, ...] = ()
    configs: tuple[str | None, ...] = (None,)
    """The hub's configurations; all are read, one after the other."""
    test_split: str | None = None
    """The split that is scored; None: a part of `train` is held out."""
    hub_file: str | None = None
    """Name of the one data file on the hub, where it is none of `train.*`."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits to read, `train` first."""
        return ("train", self.test_split) if self.test_split else ("train",)


def _task(name: str, summary: str, scoring: Scoring | None, split: str) -> Task:
    metrics = EXACT_MATCH_METRICS if scoring else LOSS_METRICS
    return Task(
        name, summary, metrics, metrics[0], None, evaluation_splits=(split,), kind="generation", scoring=scoring
    )


GENERATIVE_TASKS: dict[str, GenerativeTask] = {
    entry.task.name: entry
    for entry in (
        GenerativeTask(
            _task(
                "gsm8k",
                "school mathematics in words; the final number is scored, on the test split (7,473 examples)",
                "final_number",
                "test",
            ),
            "openai/gsm8k",
            Columns("question", "answer"),
            aliases=("gsm8k main",),
            configs=("main",),
            test_split="test",
        ),
        GenerativeTask(
            _task(
                "MATH",
                r"competition mathematics; the content of \boxed{} is scored, on the test split (7,500 examples)",
                "boxed",
                "test",
            ),
            # hendrycks/competition_math, where the authors put it, is no longer there
            "EleutherAI/hendrycks_math",
            Columns("problem", "solution"),
            aliases=("hendrycks/competition_math", "competition_math", "hendrycks_math"),
            configs=MATH_SUBJECTS,
            test_split="test",
        ),
        GenerativeTask(
            _task(
                "alpaca-cleaned",
                "instructions and answers; loss and perplexity on a twentieth, held out by prompt (51,760 examples)",
                None,
                "validation",
            ),
            "yahma/alpaca-cleaned",
            Columns("instruction", "output", "input"),
            aliases=("Alpaca",),
            hub_file="alpaca_data_cleaned.json",
        ),
        GenerativeTask(
            _task(
                "databricks-dolly-15k",
                "the same, written by people; a twentieth is held out by prompt (15,011 examples)",
                None,
                "validation",
            ),
            "databricks/databricks-dolly-15k",
            Columns("instruction", "response", "context"),
            aliases=("dolly-15k", "Dolly"),
            hub_file="databricks-dolly-15k.jsonl",
        ),
    )
}


def find_generative_task(name: str) -> GenerativeTask | None:
    """The data set of this name, hub id or alias, in any case and with any separators; None if there is none, or a path."""
    if name.startswith((".", "~", "/")):
        return None
    spelled = {
        plain(spelling): entry
        for entry in GENERATIVE_TASKS.values()
        for spelling in (entry.task.name, entry.source, *entry.aliases)
    }
    return spelled.get(plain(name))


def find_files(entry: GenerativeTask, data_dir: str | Path) -> dict[str, list[Path]]:
    """Find a data set's files below a folder: split -> paths.

    Raises:
        DataNotFoundError: listing what was looked for.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataNotFoundError(f"data_dir: there is no folder {str(root)!r}.")
    folders = [root / entry.task.name, root / entry.source.rpartition("/")[2], root]
    for folder in folders:
        found = {split: _split_files(entry, folder, split) for split in entry.splits}
        if all(found.values()):
            return found
    names = [f"{split}.jsonl (or .parquet)" for split in entry.splits]
    if entry.hub_file:
        names.append(f"or {entry.hub_file}")
    raise DataNotFoundError(
        f"{entry.task.name} needs {' and '.join(names[: len(entry.splits)])}{' ' if entry.hub_file else ''}"
        f"{''.join(names[len(entry.splits) :])}; looked in {', '.join(map(str, folders))}. Give a copy of {entry.source} as "
        "data_dir."
    )


def _split_files(entry: GenerativeTask, folder: Path, split: str) -> list[Path]:
    """The files of one split, in the first of the layouts that is there."""
    if entry.hub_file and (folder / entry.hub_file).is_file():
        return [folder / entry.hub_file]
    parts = [config for config in entry.configs if config]
    for inner in (folder, folder / "data", *(folder / part for part in parts[:1] if len(parts) == 1)):
        found = _files_of(inner, split)
        if found:
            return found
    if len(parts) > 1:  # a folder for each configuration, as on the hub; or each split, as MATH's authors have it
        each = [_files_of(folder / part, split) for part in parts]
        published = [sorted((folder / split / part).glob("*.json")) for part in parts]
        for layout in (each, published):
            if all(layout):
                return [path for paths in layout for path in paths]
    return []


def _files_of(folder: Path, split: str) -> list[Path]:
    for suffix in (*READERS, ".json"):
        if (folder / f"{split}{suffix}").is_file():
            return [folder / f"{split}{suffix}"]
    return sorted(folder.glob(f"{split}-*-of-*.parquet"))


def read_files(entry: GenerativeTask, data_dir: str | Path, *, only_train: bool = False) -> dict[str, Conversations]:
    """Read a data set, or its training examples alone, from files: split -> examples.

    Raises:
        DataNotFoundError: a file is missing.
        DataError: a file is malformed, or a reference has nothing that could be scored.
    """
    splits = {}
    for split, paths in find_files(entry, data_dir).items():
        if only_train and split != "train":
            continue
        rows, where = [], []
        for path in paths:
            found = _read_json(path) if path.suffix == ".json" else _read_rows(path)
            rows += [row for _, row in found]
            where += [place for place, _ in found]
        splits[split] = read_conversations(rows, entry.columns, where, empty_answers=True)
        if split != "train":
            check_references(entry.task, splits[split], where)
    return _with_held_out(entry, splits, only_train=only_train)


def read_hub(entry: GenerativeTask, *, only_train: bool = False) -> dict[str, Conversations]:
    """Read a data set, or its training examples alone, from the hub or its local cache: split -> examples.

    Raises:
        DataNotFoundError: the hub cannot be reached and the cache does not hold it.
        DataError: a reference has nothing that could be scored.
    """
    loaded = [
        load_hub_dataset(entry.source, config, entry.task.name, instead=f"a folder with a copy of {entry.source}")
        for config in entry.configs
    ]
    splits = {}
    for split in entry.splits[:1] if only_train else entry.splits:
        rows = [row for part in loaded for row in part[split]]
        where = [f"{entry.source}, {split}, row {i}" for i in range(1, len(rows) + 1)]
        splits[split] = read_conversations(rows, entry.columns, where, empty_answers=True)
        if split != "train":
            check_references(entry.task, splits[split], where)
    return _with_held_out(entry, splits, only_train=only_train)


def check_references(task: Task, examples: Conversations, where: Sequence[str]) -> None:
    """Refuse answers that could not be scored: a model would be wrong whatever it wrote.

    Raises:
        DataError: naming the first.
    """
    if task.scoring is None:
        return
    scoring = SCORINGS[task.scoring]
    for place, answer in zip(where, examples.answers):
        if scoring.extract(answer) is None:
            raise DataError(
                f"{place}: the answer has no {scoring.what}, by which {task.name} is scored: {answer[-60:]!r}."
            )


def _with_held_out(
    entry: GenerativeTask, splits: dict[str, Conversations], *, only_train: bool
) -> dict[str, Conversations]:
    """Where there is no test split, with a part of the training split in its place."""
    if entry.test_split:
        return splits
    train, held_out = split_by_prompt(splits["train"], HELD_OUT_SHARE)
    if not len(train) or not len(held_out):
        raise DataError(
            f"{entry.task.name}: of {pluralize(len(splits['train']), 'example')} {len(held_out)} would be held out; there are "
            "too few."
        )
    return {"train": train} if only_train else {"train": train, entry.task.evaluation_splits[0]: held_out}


def _read_rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    table = read_table(path)
    return [
        (table.where(i), {name: value for name, value in zip(table.columns, row) if value is not MISSING})
        for i, row in enumerate(table.rows)
    ]


def _read_json(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """A list of objects, or one object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}.") from error
    objects = content if isinstance(content, list) else [content]
    if not objects or not all(isinstance(row, dict) for row in objects):
        raise DataError(f"{path}: expected a list of objects, or one object.")
    return [(f"{path}, entry {i}", row) for i, row in enumerate(objects, start=1)]
