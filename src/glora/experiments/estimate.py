"""Estimate the steps and the time of runs: from the records of earlier ones, or from the first steps of a run.

Records need neither data nor model. The number of steps comes from runs on the same data, the time of a step from runs of the
same model: seconds of training are scaled by the number of steps, and the time beside training (loading, evaluation) is added.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

from typing_extensions import override

from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.experiment import ResolvedExperiment
from glora.experiments.methods.base import Schedule
from glora.experiments.models.resolution import resolve_model
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.publishing import published_name
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import finished_records
from glora.experiments.training import run as training
from glora.experiments.training.progress import RunProgress, RunStopped

SAME_EXAMPLES = ("task", "train_limit")
SAME_STEP = ("task", "model", "rank", "target_modules", "batch_size", "max_length", "precision")
TIMED_STEPS = 6


@dataclass(frozen=True)
class ExpectedRun:
    """Facts about a run that are known before its data is read.

    Attributes:
        config: its settings.
        finished: whether its record exists already.
        steps: optimizer steps, if earlier runs tell the number of examples.
        seconds: from start to end, if earlier runs tell the time of a step.
    """

    config: RunConfig
    finished: bool
    steps: int | None
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """The runs of an experiment, in the order in which they are made."""

    runs: tuple[ExpectedRun, ...]

    @property
    def to_make(self) -> tuple[ExpectedRun, ...]:
        """Return the runs that are not finished."""
        return tuple(run for run in self.runs if not run.finished)

    @property
    def seconds(self) -> float | None:
        """Return the seconds of the unfinished runs, as far as known; None if none is."""
        known = [run.seconds for run in self.to_make if run.seconds is not None]
        return sum(known) if known else None


def estimate(experiment: ResolvedExperiment, output: Path) -> Estimate:
    """Estimate an experiment from its file and the records in the output folder; nothing is loaded.

    Raises:
        RecordError: a record in the folder cannot be read.
    """
    by_key = finished_records(output)
    finished = list(by_key.values())
    runs = []
    for config in experiment.configs:
        steps = _expected_steps(config, finished)
        seconds = None if steps is None else _expected_seconds(config, steps, finished)
        runs.append(ExpectedRun(config, config.key in by_key, steps, seconds))
    return Estimate(tuple(runs))


def _expected_steps(config: RunConfig, records: Sequence[RunRecord]) -> int | None:
    counts = [r.examples["train"] for r in records if "train" in r.examples and _alike(r.config, config, SAME_EXAMPLES)]
    return Schedule.of(counts[-1], config.batch_size, config.epochs).total_steps if counts else None


def _expected_seconds(config: RunConfig, steps: int, records: Sequence[RunRecord]) -> float | None:
    """Return the seconds of a run, from records of its method or, without any, of methods whose steps cost about the same."""
    alike = [record for record in records if record.steps and _alike(record.config, config, SAME_STEP)]
    nearest = [record for record in alike if record.config.method == config.method] or alike
    return fmean(_scaled_seconds(record, steps) for record in nearest) if nearest else None


def _scaled_seconds(record: RunRecord, steps: int) -> float:
    training = record.train_seconds or 0.0
    whole = (datetime.fromisoformat(record.finished_at) - datetime.fromisoformat(record.started_at)).total_seconds()
    return training * steps / (record.steps or steps) + max(whole - training, 0.0)


def _alike(one: RunConfig, other: RunConfig, settings: Sequence[str]) -> bool:
    return all(_recorded(one, name) == _recorded(other, name) for name in settings)


def _recorded(config: RunConfig, setting: str) -> object:
    value = config.setting(setting)
    return published_name(value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Pace:
    """The time of a step.

    Attributes:
        method: The method whose steps were timed.
        seconds: Median time of a step; None where none could be timed.
        unknown: Why not.
    """

    method: str
    seconds: float | None = None
    unknown: str | None = None


class _FirstSteps(RunProgress):
    """Keep the times at which the first steps of a run end, and end the run after them."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    @override
    def step(self) -> None:
        self.ends.append(perf_counter())
        if len(self.ends) > TIMED_STEPS:
            raise RunStopped


def time_steps(config: RunConfig, task: TaskData) -> Pace:
    """Time a run's second to seventh step, for which its model is loaded; nothing is kept, and no weights are downloaded."""
    if weights_fingerprint(resolve_model(config.model)) is None:
        return Pace(config.method, unknown="the weights are not on this machine yet")
    first = _FirstSteps()
    made = None
    with contextlib.suppress(RunStopped):
        made = training.run(config.model_copy(update={"save_adapters": False, "report_to": None}), task, progress=first)
    if len(first.ends) > 1:
        return Pace(config.method, seconds=median(later - earlier for earlier, later in pairwise(first.ends)))
    return Pace(config.method, unknown=(made.error if made else None) or "a run has one step")
