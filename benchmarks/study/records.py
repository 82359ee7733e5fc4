"""The records: one line a run, appended whole when the run has ended, so that the same command goes on where it was stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.records import append_lines, read_lines
from benchmarks.study.design import ARMS, TASKS, TUNING_SEED, Run, run_of

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
Records = dict[tuple[Run, bool], dict[str, Any]]
"""(run, whether its adapter was compressed afterwards) -> record."""


def path_of(task: str, folder: Path = HERE) -> Path:
    """The records of a task."""
    return folder / f"{task}.jsonl"


def read(task: str, folder: Path = HERE) -> Records:
    """Return the records of a task; of two of the same run, the first."""
    found: Records = {}
    for record in read_lines(path_of(task, folder)):
        run = Run(**{name: record[name] for name in Run._fields})
        found.setdefault((run, bool(record["compressed"])), record)
    return found


def append(records: list[dict[str, Any]], folder: Path = HERE) -> list[dict[str, Any]]:
    """Write the records of a run; return them."""
    append_lines(path_of(records[0]["task"], folder), records)
    return records


def record_of(
    records: Records, task: str, arm: str, size: float, learning_rate: float, seed: int
) -> dict[str, Any] | None:
    """Return an arm's record, or None."""
    return records.get((run_of(task, arm, size, learning_rate, seed), ARMS[arm].compressed))


def best_rate(records: Records, task: str, arm: str, size: float) -> float | None:
    """Return the learning rate with the least loss on the selection split, of the tuning seed; None if a run is missing."""
    losses: dict[float, float] = {}
    for factor in ARMS[arm].rates:
        rate = factor * TASKS[task].learning_rate
        record = record_of(records, task, arm, size, rate, TUNING_SEED)
        if record is None:
            return None
        losses[rate] = record["selection"][record["epoch"] - 1] if record["epoch"] else math.inf
    return min(losses, key=losses.__getitem__)
