"""Plan a search: one study for each model, data set and method, checked as a whole before a model is trained.

All studies have the same number of trials, sampler, seed, pruner and tuning split. Only the ranges differ: each method is tuned
in the settings that it reads.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glora.experiments.config import DEFAULT_METHODS, DEFAULT_SEEDS, RunConfig, SearchOptions
from glora.experiments.data.metric import metric_of
from glora.experiments.data.task import TaskData
from glora.experiments.errors import collect_each
from glora.experiments.experiment import load_experiment
from glora.experiments.methods.base import Method, Schedule
from glora.experiments.models.resolution import resolve_model
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.number_format import distinct_names
from glora.experiments.plan import InvalidComparisonError, TaskLoader, check_comparison
from glora.experiments.search.ranges import SearchRange, find_ranges
from glora.experiments.search.space import combinations, default_ranges, range_errors, searched_by
from glora.experiments.training.run import count_target_matrices
from glora.messages import pluralize

RANDOM_TRIALS, TRIALS_BEFORE_PRUNING = 10, 5
"""Optuna's defaults: trials before TPE chooses, and before the median rule stops any."""

WEIGHTS = "weights"
"""Entry of a study's configuration: the model's fingerprint; None until the hub's cache holds the model."""


@dataclass(frozen=True)
class MethodSearch:
    """One study.

    Attributes:
        method: the method that is tuned.
        base: the other settings of its trials; the seed is none of the reported ones.
        ranges: the settings that are searched, perhaps none.
        schedule: length of a trial with the settings of `base`.
        task: with the examples of a trial.
        options: the search's options.
    """

    method: Method
    base: RunConfig
    ranges: tuple[SearchRange, ...]
    schedule: Schedule
    task: TaskData
    options: SearchOptions

    @property
    def metric(self) -> str:
        """Metric by which trials are judged after their last step."""
        return self.task.primary_metric

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """As Optuna names it."""
        return "maximize" if metric_of(self.metric).higher_is_better else "minimize"

    @property
    def title(self) -> str:
        """Method and task, for messages."""
        return f"{self.method.name} on {self.base.task}"

    @property
    def trials(self) -> dict[str, dict[str, Any]]:
        """Name of each trial -> parameters that are fixed: all of them if there are enough trials for all combinations."""
        every = combinations(self.ranges)
        fixed = every if 0 < len(every) <= self.options.trials else [{}] * self.options.trials
        return {f"trial {number}": params for number, params in enumerate(fixed, start=1)}

    @property
    def random_trials(self) -> int:
        """Trials before TPE has seen enough to choose: Optuna's default, or half of all."""
        return max(1, min(RANDOM_TRIALS, len(self.trials) // 2))

    @property
    def trials_before_pruning(self) -> int:
        """Trials that are trained to the end before one is stopped early: Optuna's default, or a third of all, at least 2."""
        return max(2, min(TRIALS_BEFORE_PRUNING, len(self.trials) // 3))

    @property
    def sampler(self) -> str:
        """Name of the rule that chooses the settings of trials."""
        if not combinations(self.ranges) or len(combinations(self.ranges)) > self.options.trials:
            return f"TPE, seed {self.options.seed}, the first {self.random_trials} at random"
        return f"each of the {len(self.trials)} combinations once" if len(self.trials) > 1 else "one trial"

    @property
    def pruner(self) -> str:
        """Name of the rule that stops trials early."""
        return f"median rule after {pluralize(self.trials_before_pruning, 'trial')}"

    @property
    def space(self) -> dict[str, str]:
        """Setting -> its range, in words."""
        return {found.setting: found.values for found in self.ranges}

    @property
    def study_config(self) -> dict[str, Any]:
        """Values on which workers must agree to share the study."""
        settings = {name: value for name, value in self.base.recorded_settings().items() if value is not None}
        return {
            **{name: value for name, value in settings.items() if name not in ("method", "seed", *self.space)},
            **{f"range of {name}": text for name, text in self.space.items()},
            "trials": len(self.trials),
            "sampler": self.sampler,
            "pruner": self.pruner,
            "metric": f"{self.metric}, {self.direction}",
            "seed of the trials": self.base.seed,
            "data": self.task.fingerprint,
            WEIGHTS: weights_fingerprint(resolve_model(self.base.model)),
        }


def how_chosen(studies: Sequence[MethodSearch]) -> str:
    """Return the rules that chose the trials' settings; a method with fewer settings may have fewer combinations."""
    methods: dict[str, list[str]] = {}
    for study in studies:
        methods.setdefault(study.sampler, []).append(study.method.name)
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {how}" for how, names in methods.items())


@dataclass(frozen=True)
class PairSearch:
    """A model on a data set: fields of `RunConfig` that all its runs share, and a study for each method."""

    settings: Mapping[str, Any]
    studies: tuple[MethodSearch, ...]


@dataclass(frozen=True)
class SearchPlan:
    """A whole search: its name starts the studies' names, its seeds are those of the reported runs."""

    name: str
    output: Path
    options: SearchOptions
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    pairs: tuple[PairSearch, ...]

    @property
    def studies(self) -> tuple[MethodSearch, ...]:
        """Studies with something to search."""
        return tuple(study for pair in self.pairs for study in pair.studies if study.ranges)

    @property
    def study_names(self) -> list[str]:
        """Their names in a storage that holds several searches; with folders only where names alone are ambiguous."""
        tasks, models = (distinct_names(s.base.setting(name) for s in self.studies) for name in ("task", "model"))
        return [f"{self.name} / {tasks[s.base.task]} / {models[s.base.model]} / {s.method.name}" for s in self.studies]


def search_request_of_file(
    path: Path, given: Mapping[str, Any] | None = None, *, ranges: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return arguments of `plan_search` for an experiment file; `given` fields and `ranges` replace the file's.

    Raises:
        FileNotFoundError, IsADirectoryError, MalformedFileError, InvalidExperimentError: see `load_experiment`.
        InvalidComparisonError: as for `parse_ranges`.
    """
    wanted = parse_ranges(ranges or {})
    experiment = load_experiment(path, given)
    replaced = {found.setting for found in wanted}
    return {
        "pairs": [pair.settings for pair in experiment.pairs],
        "methods": experiment.methods,
        "seeds": experiment.seeds,
        "ranges": [*wanted, *(found for found in experiment.ranges if found.setting not in replaced)],
    }


def parse_ranges(ranges: Mapping[str, str]) -> list[SearchRange]:
    """Return what is searched, from settings and their ranges as text.

    Raises:
        InvalidComparisonError: naming every range that is malformed, contradicts itself, or is given twice.
    """
    errors: list[str] = []
    found = find_ranges(ranges.items(), errors)
    if errors:
        raise InvalidComparisonError(errors)
    return found


def plan_search(
    output: Path,
    name: str,
    *,
    pairs: Sequence[Mapping[str, Any]],
    methods: Sequence[str] = DEFAULT_METHODS,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    options: SearchOptions,
    ranges: Sequence[SearchRange] = (),
) -> SearchPlan:
    """Check a search.

    Read the training examples, to know the length of a trial; load a model to count its matrices if `total_rank` is searched by
    default. The splits that are reported are not read.

    Args:
        output: folder of the records; need not exist.
        name: of the search; workers with the same storage and name share its studies.
        pairs: for each model and data set the fields of `RunConfig` that differ from their defaults.
        methods: names of `METHODS`.
        seeds: of the runs that are reported.
        options: trials, held-out share, seed.
        ranges: what is searched; by default `default_ranges`, except settings to which `pairs` gives a value.

    Raises:
        InvalidComparisonError: naming every error.
    """
    errors = _option_errors(options)
    plan_pair = functools.partial(_pair, output, methods, seeds, options, ranges, TaskLoader())
    found = [] if errors else collect_each(plan_pair, pairs, errors)
    errors += [] if errors else _unsearched(ranges, found)
    if errors:
        raise InvalidComparisonError(errors)
    return SearchPlan(name, output, options, tuple(methods), tuple(seeds), tuple(found))


def _option_errors(options: SearchOptions) -> list[str]:
    errors = []
    if options.trials < 1:
        errors.append(f"trials={options.trials}: a search needs at least 1 trial of each method")
    if not 0 < options.held_out < 1:
        errors.append(f"held_out={options.held_out:g} must be above 0 and below 1: a share of the training examples")
    if not 0 <= options.seed < 2**32:
        errors.append(f"search_seed={options.seed} must be at least 0 and below 2**32")
    return errors


def _pair(
    output: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    options: SearchOptions,
    ranges: Sequence[SearchRange],
    load: TaskLoader,
    settings: Mapping[str, Any],
) -> PairSearch:
    """Plan the studies of a model and a data set.

    Raises:
        ValueError, OSError: naming every error that can be found.
    """
    base, found = check_comparison(output, methods=methods, seeds=seeds, settings=settings)
    trial = base.model_copy(update={"held_out": options.held_out, "seed": (max(seeds) + 1) % 2**32})
    task = load(trial)
    defaults = () if ranges else default_ranges(count_target_matrices(trial, task), base.rank)
    wanted = [*ranges, *(found for found in defaults if found.setting not in settings)]
    studies = tuple(
        MethodSearch(
            method=method,
            base=method.normalise(trial, trial.seed),
            ranges=searched_by(method, trial, wanted),
            schedule=Schedule.of(len(task.train), trial.batch_size, trial.epochs),
            task=task,
            options=options,
        )
        for method in found
    )
    errors = [f for study in studies for f in range_errors(study.method, trial, study.ranges, len(study.task.train))]
    if errors:
        raise InvalidComparisonError(errors)
    return PairSearch(settings, studies)


def _unsearched(ranges: Sequence[SearchRange], pairs: Sequence[PairSearch]) -> list[str]:
    """Return errors for ranges that no method reads, or for nothing to search at all."""
    searched = {found.setting for pair in pairs for study in pair.studies for found in study.ranges}
    if not searched:
        return ["nothing to search: every setting of the methods has a value; leave one out, or name a range"]
    return [
        f"{found.setting}: none of the methods reads this setting; leave out its range"
        for found in ranges
        if found.setting not in searched
    ]
