"""The records: one line a run, appended whole when the run has ended, so that the same command goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.study.design import ARMS, TASKS, TUNING_SEED, Run, run_of

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
Records = dict[tuple[Run, bool], dict[str, Any]]
"""(run, whether its adapter was compressed afterwards) -> record."""


def path_of(task: str, folder: Path = HERE) -> Path:
    """The records of a task."""
    return folder / f"{task}.jsonl"


def lines(task: str, folder: Path = HERE) -> Iterator[dict[str, Any]]:
    """Yield the records of a task; a line that a killed process has cut off is left out."""
    path = path_of(task, folder)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def read(task: str, folder: Path = HERE) -> Records:
    """Return the records of a task; of two of the same run, the first."""
    found: Records = {}
    for record in lines(task, folder):
        run = Run(**{name: record[name] for name in Run._fields})
        found.setdefault((run, bool(record["compressed"])), record)
    return found


def append(records: list[dict[str, Any]], folder: Path = HERE) -> list[dict[str, Any]]:
    """Write the records of a run, a line each, by one write, which other processes cannot divide; return them."""
    with path_of(records[0]["task"], folder).open("ab", buffering=0) as file:
        file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
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
