"""Many runs: which there are, what is wrong with them, which are still to be made, and making them.

A comparison is the product of methods and seeds for one model and task. It is checked as a whole before a model is
loaded, and every fault is reported at once. Runs are made seed by seed with the methods side by side, so that whenever
it is interrupted, the seeds that are complete compare all methods, and slow changes of the machine hit all alike.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glora.experiments.config import GENERATIVE_MAX_LENGTH, RunConfig
from glora.experiments.data.registry import resolve_task
from glora.experiments.errors import ConfigurationError, attempt, repeated
from glora.experiments.methods.base import Method, Schedule, find_method
from glora.experiments.models.model_fit import comes_from_hub, length_faults, unsupported_settings
from glora.experiments.models.registry import resolve_model
from glora.experiments.records.failures import cannot_load_model
from glora.experiments.records.schema import RUNS_FOLDER, RunRecord, finished_records
from glora.experiments.records.store import keep_record
from glora.messages import pluralize

if TYPE_CHECKING:
    from glora.experiments.training.progress import RunProgress

DEFAULT_METHODS = ("lora", "adalora", "glora")
DEFAULT_SEEDS = (0, 1, 2)


class InvalidComparisonError(ConfigurationError):
    """What is wrong with a comparison."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan."""

    config: RunConfig
    schedule: Schedule
    finished: bool
    """Whether its record is there already."""


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison in the order in which they are made."""

    runs: tuple[PlannedRun, ...]
    examples: Mapping[str, int]
    """Split -> number of examples, "train" first."""
    output: Path

    @property
    def to_make(self) -> tuple[PlannedRun, ...]:
        """The runs that are not finished."""
        return tuple(run for run in self.runs if not run.finished)

    @property
    def steps_to_make(self) -> int:
        """Optimiser steps of the runs that are not finished."""
        return sum(run.schedule.total_steps for run in self.to_make)


def plan_comparison(
    output: str | os.PathLike[str],
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Check a comparison and see what is left to do. Loads the task's data, to know how long a run is, but no model.

    Of a model of the hub the configuration is fetched, so that one which cannot be had is told before the first run.

    Args:
        output: folder of the records; need not exist.
        methods: names of `METHODS`.
        seeds: one run of each method for each seed.
        settings: fields of `RunConfig` that are not at their defaults, but for `method` and `seed`.

    Raises:
        InvalidComparisonError: naming every fault that can be found.
        RecordError: a record in the folder cannot be read.
    """
    output = Path(output)
    base, chosen = check_comparison(output, methods=methods, seeds=seeds, settings=settings)

    configs = [method.normalise(base, seed) for seed in seeds for method in chosen]
    done = finished_records(output)
    if any(config.key not in done for config in configs) and comes_from_hub(base.model):
        unfit: list[str] = []
        unfit += attempt(functools.partial(length_faults, base), unfit) or []
        if unfit:
            raise InvalidComparisonError(unfit)

    from glora.experiments.training.run import data_fingerprint, example_counts

    examples = example_counts(base)
    schedule = Schedule.of(examples["train"], base.batch_size, base.epochs)
    late = [f"{m.name}: {fault}" for m in chosen for fault in m.schedule_faults(base, schedule)]
    if late:
        raise InvalidComparisonError(late)
    on_other_data = _other_data([done[c.key] for c in configs if c.key in done], data_fingerprint(base), output)
    if on_other_data:
        raise InvalidComparisonError(on_other_data)
    runs = tuple(PlannedRun(config, schedule, finished=config.key in done) for config in configs)
    return Plan(runs=runs, examples=examples, output=output)


def check_comparison(
    output: Path, *, methods: Sequence[str], seeds: Sequence[int], settings: Mapping[str, Any] | None
) -> tuple[RunConfig, list[Method]]:
    """Check what can be checked without loading anything: the settings that all runs share, and the methods.

    Raises:
        InvalidComparisonError: naming every fault that can be found.
    """
    faults = _folder_faults(output)
    chosen = _chosen_methods(methods, faults)
    faults += repeated("methods", methods) or repeated("methods", [method.name for method in chosen])
    faults += repeated("seeds", seeds)
    if not seeds:
        faults.append("seeds: there is none; give at least one, such as 0")
    base = _validated(settings or {}, seeds, faults)
    if base is not None:
        base = _found(base, faults)
        faults += [f"{method.name}: {fault}" for method in chosen for fault in method.setting_faults(base)]
    if faults or base is None:
        raise InvalidComparisonError(faults)
    return base, chosen


def check_settings(settings: Mapping[str, Any]) -> RunConfig:
    """One run's settings as a configuration, with the task's proper name; nothing is loaded.

    Raises:
        InvalidComparisonError: naming every fault that can be found.
    """
    faults: list[str] = []
    config = _validated(settings, (settings.get("seed", 0),), faults)
    if config is not None:
        config = _found(config, faults)
    if faults or config is None:
        raise InvalidComparisonError(faults)
    return config


def compare(
    plan: Plan, progress: RunProgress, *, make_run: Callable[..., RunRecord] | None = None
) -> tuple[RunRecord, ...]:
    """Make the runs of a plan that are not finished, and write the record of each as soon as it ends.

    A run that fails is recorded like another and the next one begins; but if the first cannot load its model, neither can
    the others, and none of them is made. Ctrl-C ends the comparison; what was finished is
    on the disk, and planning the same comparison again leaves only the rest.

    Args:
        plan: what to do.
        progress: what to tell how far it is.
        make_run: makes one run; by default `train.run`.

    Returns:
        The records of the runs that were made.

    Raises:
        RecordKeptElsewhereError: a record could not be written where it belongs.
    """
    if make_run is None:
        from glora.experiments.training.run import runs_of

        make_run = runs_of(plan.output)
    if (
        plan.to_make
    ):  # some folders are refused only now, whatever their permissions say: better than after the first run
        (plan.output / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
    progress.begin(len(plan.to_make), plan.steps_to_make)
    records = []
    for planned in plan.to_make:
        record = make_run(planned.config, progress=progress)
        keep_record(plan.output, record)
        records.append(record)
        if len(records) == 1 and cannot_load_model(record.error or ""):
            if others := len(plan.to_make) - 1:
                progress.say(f"{pluralize(others, 'run')} more would need the same model: not made")
            break
    return tuple(records)


def _chosen_methods(names: Sequence[str], faults: list[str]) -> list[Method]:
    if not names:
        faults.append(f"methods: there is none; give at least one, such as {','.join(DEFAULT_METHODS)}")
    found = [attempt(functools.partial(find_method, name), faults) for name in dict.fromkeys(names)]
    return [method for method in found if method is not None]


def _validated(settings: Mapping[str, Any], seeds: Sequence[int], faults: list[str]) -> RunConfig | None:
    """The settings as a configuration, or None and its faults in words that name the value."""
    validate = RunConfig.model_validate
    each = [attempt(functools.partial(validate, {**settings, "seed": seed}), faults) for seed in seeds or (0,)]
    return None if None in each else each[0]


def _found(config: RunConfig, faults: list[str]) -> RunConfig:
    """The configuration with the task's proper name; what shows of its other names without loading them is checked."""
    attempt(functools.partial(_check_scheduler, config.lr_scheduler), faults)
    attempt(functools.partial(_check_reporters, config.report_to), faults)
    model = attempt(lambda: resolve_model(config.model), faults)
    task = attempt(lambda: resolve_task(config.task, config.data_dir), faults)
    if task is None:
        return config
    named = config.model_copy(update={"task": task.name})
    if task.kind == "generation" and "max_length" not in config.model_fields_set:
        named = named.model_copy(update={"max_length": GENERATIVE_MAX_LENGTH})
    if model is not None:
        faults += attempt(functools.partial(unsupported_settings, named, task.kind), faults) or []
    return named


def _other_data(records: Sequence[RunRecord], fingerprint: str, output: Path) -> list[str]:
    """A configuration does not say where data lie, nor that a file has been edited since: the fingerprint does."""
    recorded = [(record.key, record.provenance.data_fingerprint) for record in records]
    odd = [(key, found) for key, found in recorded if found not in (None, fingerprint)]
    if not odd:
        return []
    key, found = odd[0]
    return [
        f"output={str(output)!r}: {pluralize(len(odd), 'finished run')} there with these settings saw other data (fingerprint "
        f"{str(found)[:8]} in {key}, now {fingerprint[:8]}); name another folder, or move those records away"
    ]


def _check_scheduler(name: str) -> None:
    from transformers.trainer_utils import SchedulerType

    known = [scheduler.value for scheduler in SchedulerType]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(f"lr_scheduler={name!r}: {hint}The schedules are {', '.join(known)}")


def _check_reporters(report_to: str | None) -> None:
    if report_to is not None:
        from glora.experiments.training.reporting import reporters

        reporters(report_to)


def _folder_faults(output: Path) -> list[str]:
    """Whether records can be written there: better known now than after the first run."""
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir():
        return [f"output={str(output)!r}: {str(existing)!r} is a file; name a folder"]
    if not os.access(existing, os.W_OK):
        return [f"output={str(output)!r}: no permission to write in {str(existing)!r}; name another folder"]
    return []
