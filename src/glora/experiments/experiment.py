"""Resolve an experiment file to its runs, and plan them.

`load_experiment` loads neither models nor data. It looks names up in the registries, looks for folders and checks settings, so
that a file can be checked without a network and without the data. All errors are reported at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from glora.experiments.config import DEFAULT_MODEL, DEFAULT_TASK, RunConfig
from glora.experiments.data.metric import METRICS
from glora.experiments.data.registry import TASKS, reads_data_dir
from glora.experiments.errors import collect, repeated
from glora.experiments.experiment_file import NOT_SETTINGS, Experiment, InvalidExperimentError, read_experiment
from glora.experiments.methods.base import unread_settings
from glora.experiments.methods.registry import find_method
from glora.experiments.name_resolution import (
    find_model,
    measured_as,
    resolve_dataset_name,
    resolve_method_name,
    resolve_metric_name,
    resolve_model_name,
)
from glora.experiments.plan import Plan, TaskLoader, check_settings, plan_comparison
from glora.experiments.records.store import read_records
from glora.experiments.search.ranges import SearchRange, find_ranges

REFERENCE = "lora"
PROPOSED = "glora"

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """One comparison of an experiment: a model and a data set.

    Attributes:
        settings: fields of `RunConfig`, for `plan_comparison`.
        configs: the runs, in the order in which they are made.
    """

    settings: Mapping[str, Any]
    configs: tuple[RunConfig, ...]


@dataclass(frozen=True)
class ResolvedExperiment:
    """An experiment with all names resolved.

    Attributes:
        path: the file.
        source: the file as written.
        models: name in the file -> model to load.
        datasets: name in the file -> task.
        metrics: name in the file -> metric or column of the report.
        methods: `lora` first, `glora` last.
        seeds: one run of each method for each seed.
        ranges: what a search may choose.
        pairs: every model with every data set.
    """

    path: Path
    source: Experiment
    models: Mapping[str, str]
    datasets: Mapping[str, str]
    metrics: Mapping[str, str]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    ranges: tuple[SearchRange, ...]
    pairs: tuple[Pair, ...]

    @property
    def configs(self) -> tuple[RunConfig, ...]:
        """Return the runs of all pairs."""
        return tuple(config for pair in self.pairs for config in pair.configs)


def load_experiment(path: Path, given: Mapping[str, Any] | None = None) -> ResolvedExperiment:
    """Read an experiment file and resolve all names in it.

    Args:
        path: the file, JSON or YAML.
        given: fields that replace the file's, as for `read_experiment`.

    Raises:
        FileNotFoundError, IsADirectoryError, MalformedFileError: the file as a whole cannot be read.
        InvalidExperimentError: naming every error that can be found without loading anything.
    """
    source, errors = read_experiment(path, given)
    resolved = _resolve(path, source, errors)
    if errors or resolved is None:
        raise InvalidExperimentError(path, errors)
    return resolved


def plan_experiment(experiment: ResolvedExperiment, output: Path) -> tuple[Plan, ...]:
    """Return one plan for each model and task. Loads all tasks, so that no run starts if data is missing.

    Raises:
        InvalidExperimentError: naming every error of every plan.
        RecordError: a record in the folder cannot be read.
    """
    read_records(output)
    errors: list[str] = []
    load = TaskLoader()
    plans = [
        collect(
            functools.partial(
                plan_comparison,
                output,
                methods=experiment.methods,
                seeds=experiment.seeds,
                settings=pair.settings,
                load=load,
            ),
            errors,
            field=pair.settings["task"],
        )
        for pair in experiment.pairs
    ]
    if errors:
        raise InvalidExperimentError(experiment.path, errors)
    return tuple(plan for plan in plans if plan is not None)


def _resolve(path: Path, source: Experiment, errors: list[str]) -> ResolvedExperiment | None:
    overrides = _overrides(source, errors) if source.models_to_use else {}
    models = _each(
        "models_to_use", source.models_to_use, lambda text: resolve_model_name(overrides.get(text, text)), errors
    )
    metrics = _each("evaluation_metrics", source.evaluation_metrics, resolve_metric_name, errors)
    datasets = _each("datasets_to_use", source.datasets_to_use, resolve_dataset_name, errors)
    if datasets and len(datasets) == len(set(source.datasets_to_use)):
        errors += _unread(source, list(datasets.values()))
        metrics = _as_measured(metrics, list(datasets.values()), errors)
    compared = _each("comparative_methods", source.comparative_methods, resolve_method_name, errors)
    others = [method for method in compared.values() if method not in {REFERENCE, PROPOSED}]
    methods = tuple(dict.fromkeys([REFERENCE, *others, PROPOSED]))
    field = "hyperparameters_to_search"
    ranges = tuple(find_ranges(((s.name, s.range) for s in source.hyperparameters_to_search), errors, field=field))
    seeds = tuple(source.seeds)
    errors += repeated("models_to_use", [models[text] for text in source.models_to_use if text in models])
    errors += repeated("datasets_to_use", [datasets[text] for text in source.datasets_to_use if text in datasets])
    errors += repeated("seeds", seeds)
    pairs = _pairs(source, list(models.values()), list(datasets.values()), methods, errors)
    return (
        None if errors else ResolvedExperiment(path, source, models, datasets, metrics, methods, seeds, ranges, pairs)
    )


def _each(field: str, texts: Sequence[str], find: Callable[[str], T], errors: list[str]) -> dict[str, T]:
    """Return text -> the value that it names; unknown texts become errors."""
    found = {text: collect(functools.partial(find, text), errors, field=field) for text in texts}
    return {text: value for text, value in found.items() if value is not None}


def _overrides(source: Experiment, errors: list[str]) -> dict[str, str]:
    """A model of the file, as written -> the model to load instead."""
    overrides = {}
    for name, replacement in source.model_overrides.items():
        entry = find_model(name)
        meant = [text for text in source.models_to_use if text == name or (entry and find_model(text) is entry)]
        if not meant:
            errors.append(f"model_overrides: {name!r} is not in models_to_use ({', '.join(source.models_to_use)})")
        for text in meant:
            overrides[text] = replacement
    return overrides


def _unread(source: Experiment, tasks: Sequence[str]) -> list[str]:
    if source.data_dir is None or any(map(reads_data_dir, tasks)):
        return []
    return [f"data_dir={source.data_dir!r} is for GLUE and generative data sets, and there are none; leave it out"]


def _as_measured(metrics: Mapping[str, str], tasks: Sequence[str], errors: list[str]) -> dict[str, str]:
    """The metrics by their names on these data sets (on gsm8k, accuracy is the exact match); one that none has is an error.

    The metrics of custom data are known when they are read.
    """
    if any(task not in TASKS for task in tasks):
        return dict(metrics)
    measured = [name for name in METRICS if any(name in TASKS[task].metrics for task in tasks)]
    named = {text: measured_as(metric, measured) for text, metric in metrics.items()}
    errors += [
        f"evaluation_metrics: {text!r} ({metrics[text]}) is not measured on {', '.join(tasks)}; choose from "
        f"{', '.join(measured)}"
        for text, name in named.items()
        if name is None
    ]
    return {text: name for text, name in named.items() if name is not None}


def _pairs(
    source: Experiment, models: Sequence[str], tasks: Sequence[str], methods: Sequence[str], errors: list[str]
) -> tuple[Pair, ...]:
    """Every model with every data set. Settings are checked by themselves first, so that their errors name their place."""
    misplaced = [name for name in source.settings if name in NOT_SETTINGS]
    errors += [f"settings.{name}: {NOT_SETTINGS[name]}" for name in misplaced]
    settings = {name: value for name, value in source.settings.items() if name not in misplaced}
    if collect(functools.partial(RunConfig.model_validate, settings), errors, field="settings") is None:
        settings = {}
    pairs, found = [], [find_method(name) for name in methods]
    for model in models or [DEFAULT_MODEL]:
        for task in tasks or [DEFAULT_TASK]:
            data_dir = source.data_dir if reads_data_dir(task) else None
            given = {**settings, "model": model, "task": task, "data_dir": data_dir}
            base = collect(functools.partial(check_settings, given, found), errors)
            if base is None:
                continue
            unfit = [f"{method.name}: {error}" for method in found for error in method.setting_errors(base)]
            errors += [f"settings: {error}" for error in [*unfit, *unread_settings(base, found)]]
            configs = tuple(method.normalise(base, seed) for seed in source.seeds for method in found)
            pairs.append(Pair(given, configs))
    return tuple(pairs)
