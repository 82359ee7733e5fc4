"""Plan the runs of an experiment: all of them, their errors, the finished and the missing ones.

A plan is the product of methods and seeds for one model and one task. It is checked as a whole before a model is loaded, and
all errors are reported at once. The task is loaded here, once, and handed on to every run. Runs go seed by seed with the
methods side by side: an interrupted comparison still compares all methods on its complete seeds, and slow changes of the
machine affect all methods alike.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.config import ConfigurationError
from glora.experiments.config import DEFAULT_METHODS, DEFAULT_SEEDS, GENERATIVE_MAX_LENGTH, RunConfig
from glora.experiments.data.loading import load_task
from glora.experiments.data.registry import resolve_task
from glora.experiments.data.task import Kind, TaskData
from glora.experiments.errors import collect, collect_each, repeated
from glora.experiments.methods.base import Method, Schedule, unread_settings
from glora.experiments.methods.registry import find_method
from glora.experiments.models.loading import build_skeleton
from glora.experiments.models.model_fit import comes_from_hub, length_errors, unsupported_settings
from glora.experiments.models.modules import largest_ranks
from glora.experiments.models.resolution import resolve_model
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.publishing import published_name
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import finished_records
from glora.experiments.training.reporting import reporters
from glora.experiments.training.task_kinds import find_kind
from glora.experiments.training.training_arguments import unsupported_scheduler
from glora.messages import pluralize


class InvalidComparisonError(ConfigurationError):
    """All errors of a comparison."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan.

    Attributes:
        config: its settings.
        schedule: its length.
        finished: whether its record exists already.
    """

    config: RunConfig
    schedule: Schedule
    finished: bool


@dataclass(frozen=True)
class Plan:
    """The runs of one model on one task, in the order in which they are made.

    Attributes:
        runs: all of them, finished or not.
        task: the loaded task, which every run is given.
        output: folder of the records.
    """

    runs: tuple[PlannedRun, ...]
    task: TaskData
    output: Path

    @property
    def to_make(self) -> tuple[PlannedRun, ...]:
        """The runs that are not finished."""
        return tuple(run for run in self.runs if not run.finished)

    @property
    def steps_to_make(self) -> int:
        """Optimizer steps of the runs that are not finished."""
        return sum(run.schedule.total_steps for run in self.to_make)


class TaskLoader:
    """Load each task once for all plans that train on the same data."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[object, ...], TaskData] = {}

    def __call__(self, config: RunConfig) -> TaskData:
        """Return the task of a configuration.

        Raises:
            ValueError, FileNotFoundError: the task cannot be loaded.
        """
        key = (
            config.task,
            config.data_dir,
            config.train_limit,
            config.eval_limit,
            config.held_out,
            config.writes_answers,
        )
        if key not in self._loaded:
            self._loaded[key] = load_task(
                config.task,
                data_dir=config.data_dir,
                train_limit=config.train_limit,
                eval_limit=config.eval_limit,
                held_out=config.held_out,
                write_answers=config.writes_answers,
            )
        return self._loaded[key]


def plan_comparison(
    output: str | os.PathLike[str],
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    settings: Mapping[str, Any] | None = None,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
    load: TaskLoader | None = None,
) -> Plan:
    """Check a comparison of methods on one model and task, and find the runs that are left to make.

    Loads the task, to know the length of a run, but no weights. The model's configuration, fetched from the hub if need be,
    says whether the model is available and its matrices are large enough.

    Args:
        output: folder of the records; need not exist.
        methods: names of `METHODS`, or variants.
        seeds: one run of each method for each seed.
        settings: fields of `RunConfig` that differ from their defaults, except `method` and `seed`.
        tuned: method -> settings of its own that replace `settings`.
        load: loads the task; plans that share a loader share its tasks.

    Raises:
        InvalidComparisonError: naming every error that can be found.
        RecordError: a record in the folder cannot be read.
    """
    output = Path(output)
    base, chosen = check_comparison(output, methods=methods, seeds=seeds, settings=settings)
    bases = {method.name: base for method in chosen}
    for name, values in (tuned or {}).items():
        bases[name], _ = check_comparison(
            output, methods=[name], seeds=seeds, settings={**(settings or {}), **values}, shared=False
        )

    configs = [method.normalise(bases[method.name], seed) for seed in seeds for method in chosen]
    done = _finished(output, configs)
    task_kind = resolve_task(base.task, base.data_dir).kind
    if any(config.key not in done for config in configs) and comes_from_hub(base.model):
        unfit: list[str] = []
        unfit += collect(functools.partial(length_errors, base), unfit) or []
        _raise_if_any(unfit)
        for method in chosen:
            unfit += collect(functools.partial(_matrix_errors, bases[method.name], task_kind, [method]), unfit) or []
        _raise_if_any(unfit)

    load = load or TaskLoader()
    task = load(base)
    schedules = {name: Schedule.of(len(task.train), c.batch_size, c.epochs) for name, c in bases.items()}
    _raise_if_any(f"{m.name}: {error}" for m in chosen for error in m.schedule_errors(bases[m.name], schedules[m.name]))
    _raise_if_any(_other_sources(list(done.values()), base, task, output))
    runs = tuple(PlannedRun(config, schedules[config.method], finished=config.key in done) for config in configs)
    return Plan(runs=runs, task=task, output=output)


def check_comparison(
    output: Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    settings: Mapping[str, Any] | None,
    shared: bool = True,
) -> tuple[RunConfig, list[Method]]:
    """Check what can be checked without loading anything; return the settings that all runs share, and the methods.

    Args:
        output: see `plan_comparison`, as for all but `shared`.
        methods: the methods.
        seeds: the seeds.
        settings: the settings.
        shared: whether the settings are those of all methods, one of which should read each.

    Raises:
        InvalidComparisonError: naming every error that can be found.
    """
    errors = _folder_errors(output)
    if not methods:
        errors.append(f"methods is empty; give at least one, such as {','.join(DEFAULT_METHODS)}")
    chosen = collect_each(find_method, dict.fromkeys(methods), errors)
    errors += repeated("methods", methods) or repeated("methods", [method.name for method in chosen])
    errors += repeated("seeds", seeds)
    if not seeds:
        errors.append("seeds is empty; give at least one, such as 0")
    base = _checked_settings(settings or {}, seeds or (0,), errors, chosen)
    if base is not None:
        errors += [f"{method.name}: {error}" for method in chosen for error in method.setting_errors(base)]
        errors += unread_settings(base, chosen) if shared and chosen else []
    _raise_if_any(errors)
    assert base is not None
    return base, chosen


def check_settings(settings: Mapping[str, Any], methods: Sequence[Method] = ()) -> RunConfig:
    """Return one run's settings as a configuration, with the task's registered name; no data or weights are loaded.

    Args:
        settings: fields of `RunConfig`.
        methods: methods whose ranks the model's matrices must be able to hold.

    Raises:
        InvalidComparisonError: naming every error that can be found.
    """
    errors: list[str] = []
    config = _checked_settings(settings, (settings.get("seed", 0),), errors, methods)
    _raise_if_any(errors)
    assert config is not None
    return config


def _raise_if_any(errors: Iterable[str]) -> None:
    if found := list(errors):
        raise InvalidComparisonError(found)


def _checked_settings(
    settings: Mapping[str, Any], seeds: Sequence[int], errors: list[str], methods: Sequence[Method]
) -> RunConfig | None:
    """The settings as a configuration; None if they do not form one. Names are looked up but not loaded."""
    validate = RunConfig.model_validate
    each = [collect(functools.partial(validate, {**settings, "seed": seed}), errors) for seed in seeds]
    config = each[0]
    if config is None or None in each:
        return None
    errors += unsupported_scheduler(config)
    collect(functools.partial(reporters, config.report_to), errors)
    model = collect(lambda: resolve_model(config.model), errors)
    task = collect(lambda: resolve_task(config.task, config.data_dir), errors)
    if task is None:
        return config
    changes: dict[str, Any] = {"task": task.name}
    if task.kind == "generation" and "max_length" not in config.model_fields_set:
        changes["max_length"] = GENERATIVE_MAX_LENGTH
    named = config.model_copy(update=changes)
    if model is not None:
        unfit = collect(functools.partial(unsupported_settings, named, task.kind), errors)
        if unfit == [] and not comes_from_hub(config.model):
            unfit = collect(functools.partial(_matrix_errors, named, task.kind, methods), errors)
        errors += unfit or []
    return named


def _finished(output: Path, configs: Sequence[RunConfig]) -> dict[str, RunRecord]:
    """Finished records by key; a key is a digest, so that the whole configuration must be the one that is asked for.

    Raises:
        InvalidComparisonError: a record has the key of another configuration.
    """
    done = finished_records(output)
    asked = {config.key: config.recorded_settings() for config in configs}
    odd = [r.key for r in done.values() if r.key in asked and r.config.recorded_settings() != asked[r.key]]
    _raise_if_any(f"{key}: this record is of a run with other settings; move its file away" for key in odd)
    return {record.config.key: record for record in done.values()}


def _matrix_errors(config: RunConfig, kind: Kind, methods: Sequence[Method]) -> list[str]:
    """Ranks that the model's matrices cannot hold, by the shapes that its configuration gives.

    Raises:
        ModelNotFoundError: the configuration is not available, or not of this kind of task.
        ValueError: `target_modules` matches nothing.
    """
    task_kind, model, wanted = find_kind(kind), build_skeleton(config, kind), config.target_modules
    names = [*task_kind.target_modules(model, wanted), *task_kind.target_parameters(model, wanted)]
    limits = largest_ranks(model, names)
    if config.rank > max(limits.values()):
        most = max(limits.values())
        return [f"rank={config.rank} is more than any matrix of {config.model} can use; lower it to {most} or less"]
    able = [method for method in methods if not method.setting_errors(config)]
    return [f"{method.name}: {error}" for method in able for error in method.matrix_errors(config, limits)]


def _other_sources(records: Sequence[RunRecord], base: RunConfig, task: TaskData, output: Path) -> list[str]:
    """Finished runs of another model or on other data that have the same name: it changed, or another has its name."""
    named = {name: published_name(base.setting(name)) for name in ("model", "task")}
    same_model = [r for r in records if published_name(r.config.model) == named["model"]]
    on_task = [r for r in records if published_name(r.config.task) == named["task"]]
    limits = ("train_limit", "eval_limit", "held_out")
    same_data = [r for r in on_task if all(r.config.setting(name) == base.setting(name) for name in limits)]
    models = {r.key: found for r in same_model if (found := r.provenance.model_fingerprint)}
    data = {r.key: found for r in same_data if (found := r.provenance.data_fingerprint)}
    errors: list[str] = []
    fingerprint = collect(lambda: weights_fingerprint(resolve_model(base.model)), errors) if models else None
    return errors + [
        f"output={str(output)!r} has {pluralize(len(odd), 'finished run')} {what} {base.setting(name)!r} (fingerprint "
        f"{_short(next(iter(odd.values())))} in {next(iter(odd))}, now {_short(now)}); choose another folder, or move those "
        "records away"
        for name, what, found, now in (
            ("model", "of another model", models, fingerprint),
            ("task", "on other data", data, task.fingerprint),
        )
        if now and (odd := {key: each for key, each in found.items() if each != now})
    ]


def _short(fingerprint: str) -> str:
    return fingerprint.rpartition(":")[2][:8]


def _folder_errors(output: Path) -> list[str]:
    """Reasons why records cannot be written there: better known now than after the first run."""
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir():
        return [f"output={str(output)!r}: {str(existing)!r} is a file; name a folder"]
    if not os.access(existing, os.W_OK):
        return [f"output={str(output)!r}: no permission to write in {str(existing)!r}; choose another folder"]
    return []
