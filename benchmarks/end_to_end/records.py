"""The records: a line a run, appended when it has ended, so that the same command goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.end_to_end.design import RACES, Entry
from benchmarks.records import read_lines
from benchmarks.study import design
from benchmarks.study.records import path_of

HERE = Path(__file__).parent
Records = dict[Entry, dict[str, Any]]


def read(race: str, folder: Path = HERE) -> Records:
    """Return the records of a race; of two of the same run, the first."""
    found: Records = {}
    for record in read_lines(path_of(race, folder)):
        found.setdefault(Entry(record["arm"], record["learning_rate"], record["seed"]), record)
    return found


def best_rate(records: Records, race: str, arm: str) -> float | None:
    """Return the learning rate with the least final loss on the tuning seed; None if a run is missing."""
    middle = design.TASKS[RACES[race].task].learning_rate
    tuning = [Entry(arm, factor * middle, design.TUNING_SEED) for factor in design.ARMS[arm].rates]
    if any(entry not in records for entry in tuning):
        return None
    return min(tuning, key=lambda entry: records[entry]["curve"][-1][-1]).learning_rate
