"""What is searched: one study for each model, data set and method, checked as a whole before a model is trained.

All studies of a search have the same number of trials, the same sampler with the same seed, the same pruner and the same
tuning split; only the settings differ, since each method is tuned in those that it looks at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.methods.base import Method, Schedule
from glora.experiments.plan import InvalidComparisonError, TaskLoader, check_comparison
from glora.experiments.search.ranges import SearchRange
from glora.experiments.search.sampler import EveryCombination, SlotSeededTPE, describe_pruner
from glora.experiments.search.shared_trials import LONGEST_NAME
from glora.experiments.search.space import combinations, default_ranges, range_faults, searched_by
from glora.experiments.training.metrics import higher_is_better
from glora.experiments.training.run import count_target_matrices

HELD_OUT = 0.2
"""Share of the training examples on which is tuned: with RTE's 2,490 examples, 498, whose accuracy is known to ± 2 points."""


@dataclass(frozen=True)
class SearchOptions:
    """How is searched.

    Attributes:
        trials: of each study; one whose ranges are all choices has no more than these have combinations.
        held_out: share of the training examples that trials are judged by.
        seed: of the sampler.
    """

    trials: int
    held_out: float = HELD_OUT
    seed: int = 0


@dataclass(frozen=True)
class MethodSearch:
    """One study.

    Attributes:
        method: the method that is tuned.
        base: the settings of its trials that are not searched; its seed is none of those that are reported.
        ranges: the settings that are searched; none if the method looks at none of them.
        schedule: length of a trial with the settings of `base`.
        task: with the examples of a trial.
        options: how is searched.
    """

    method: Method
    base: RunConfig
    ranges: tuple[SearchRange, ...]
    schedule: Schedule
    task: TaskData
    options: SearchOptions

    @property
    def examples(self) -> Mapping[str, int]:
        """Split -> number of examples of a trial."""
        return self.task.example_counts

    @property
    def fingerprint(self) -> str:
        """Of these examples."""
        return self.task.fingerprint

    @property
    def metric(self) -> str:
        """What trials are judged by, after their last step."""
        return self.task.primary_metric

    @property
    def direction(self) -> str:
        """As Optuna names it."""
        return "maximize" if higher_is_better(self.metric) else "minimize"

    @property
    def sampler(self) -> SlotSeededTPE | EveryCombination:
        """What chooses the settings of trials: where the trials are enough for all combinations, nothing is left to chance."""
        every = combinations(self.ranges)
        if every and len(every) <= self.options.trials:
            return EveryCombination(every)
        return SlotSeededTPE(self.options.seed, self.options.trials)

    @property
    def trials(self) -> int:
        """How many there are."""
        return min(self.options.trials, len(combinations(self.ranges)) or self.options.trials)

    @property
    def space(self) -> dict[str, str]:
        """Setting -> its range, in words."""
        return {found.setting: str(found).removeprefix(f"{found.setting} ") for found in self.ranges}

    @property
    def terms(self) -> dict[str, Any]:
        """What must be equal for two processes to work on one study."""
        settings = self.base.recorded_settings()
        beside = {"model", "task", "method", "seed", "held_out", *self.space}
        return {
            "model": self.base.model,
            "task": self.base.task,
            "search space": self.space,
            "trials": self.trials,
            "sampler": self.sampler.description,
            "pruner": describe_pruner(self.trials),
            "judged by": f"{self.metric}, {self.direction}d",
            "held out": self.options.held_out,
            "settings": {name: value for name, value in settings.items() if name not in beside and value is not None},
            "seed of the trials": self.base.seed,
            "data fingerprint": self.fingerprint,
        }

    def study_name(self, search: str) -> str:
        """Its name in a storage that holds several searches."""
        return f"{search} / {self.base.task} / {self.base.model} / {self.method.name}"[-LONGEST_NAME:]


def how_chosen(studies: Sequence[MethodSearch]) -> str:
    """What chose the settings of the studies' trials; a method with fewer settings may have fewer combinations of them."""
    methods: dict[str, list[str]] = {}
    for study in studies:
        methods.setdefault(study.sampler.description, []).append(study.method.name)
    if len(methods) == 1:
        return next(iter(methods))
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {how}" for how, names in methods.items())


@dataclass(frozen=True)
class PairSearch:
    """A model on a data set: a study for each method, and the settings of the runs that are reported in the end."""

    settings: Mapping[str, Any]
    """Fields of `RunConfig`, for `plan_comparison`."""
    studies: tuple[MethodSearch, ...]


@dataclass(frozen=True)
class SearchPlan:
    """All of a search.

    Attributes:
        name: of the search, the first part of its studies' names.
        output: folder for the records, the report and, where no storage is named, the database.
        options: how is searched.
        methods: what is compared.
        seeds: of the runs that are reported.
        pairs: every model with every data set.
    """

    name: str
    output: Path
    options: SearchOptions
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    pairs: tuple[PairSearch, ...]

    @property
    def studies(self) -> tuple[MethodSearch, ...]:
        """Those in which there is something to search."""
        return tuple(study for pair in self.pairs for study in pair.studies if study.ranges)


def plan_search(
    output: Path,
    name: str,
    *,
    pairs: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    seeds: Sequence[int],
    options: SearchOptions,
    ranges: Sequence[SearchRange] = (),
) -> SearchPlan:
    """Check a search.

    Reads the training examples, to know how long a trial is; and loads a model to count its matrices if `total_rank` is
    searched by default. The splits that are reported are not read.

    Args:
        output: folder of the records; need not exist.
        name: of the search; processes that share a storage and a name share its studies.
        pairs: for each model and data set the fields of `RunConfig` that are not at their defaults.
        methods: names of `METHODS`.
        seeds: of the runs that are reported.
        options: how is searched.
        ranges: what is searched; by default `default_ranges`, but for settings that `pairs` gives a value.

    Raises:
        InvalidComparisonError: naming every fault that can be found.
    """
    faults = _option_faults(options)
    found = []
    load = TaskLoader()
    for settings in pairs:
        pair = (
            None if _option_faults(options) else _pair(output, settings, methods, seeds, options, ranges, load, faults)
        )
        found += [pair] if pair else []
    faults += [] if faults else _unsearched(ranges, found)
    if faults:
        raise InvalidComparisonError(faults)
    return SearchPlan(name, output, options, tuple(methods), tuple(seeds), tuple(found))


def _option_faults(options: SearchOptions) -> list[str]:
    faults = []
    if options.trials < 1:
        faults.append(f"trials={options.trials}: a search needs at least 1 trial of each method")
    if not 0 < options.held_out < 1:
        faults.append(f"held_out={options.held_out:g} must be above 0 and below 1: a share of the training examples")
    if not 0 <= options.seed < 2**32:
        faults.append(f"search_seed={options.seed} must be at least 0 and below 2**32")
    return faults


def _pair(
    output: Path,
    settings: Mapping[str, Any],
    methods: Sequence[str],
    seeds: Sequence[int],
    options: SearchOptions,
    ranges: Sequence[SearchRange],
    load: TaskLoader,
    faults: list[str],
) -> PairSearch | None:
    """The studies of a model and a data set, or None and its faults."""
    try:
        base, found = check_comparison(output, methods=methods, seeds=seeds, settings=settings)
        trial = base.model_copy(update={"held_out": options.held_out, "seed": (max(seeds) + 1) % 2**32})
        task = load(trial)
        wanted = list(ranges) or [
            r for r in default_ranges(count_target_matrices(trial, task), base.rank) if r.setting not in settings
        ]
        studies = tuple(_study(method, trial, task, wanted, options) for method in found)
    except InvalidComparisonError as error:
        faults += error.faults
        return None
    except (ValueError, OSError) as error:
        faults.append(str(error))
        return None
    faults += [f for study in studies for f in range_faults(study.method, trial, study.ranges, study.examples["train"])]
    return PairSearch(settings, studies)


def _study(
    method: Method, trial: RunConfig, task: TaskData, ranges: Sequence[SearchRange], options: SearchOptions
) -> MethodSearch:
    return MethodSearch(
        method=method,
        base=method.normalise(trial, trial.seed),
        ranges=searched_by(method, ranges),
        schedule=Schedule.of(len(task.train), trial.batch_size, trial.epochs),
        task=task,
        options=options,
    )


def _unsearched(ranges: Sequence[SearchRange], pairs: Sequence[PairSearch]) -> list[str]:
    """Ranges that no method looks at; and nothing to search at all."""
    searched = {found.setting for pair in pairs for study in pair.studies for found in study.ranges}
    if not searched:
        return ["there is nothing to search: every setting of the methods has a value; leave one out, or name a range"]
    return [
        f"{found.setting}: none of the methods looks at this setting, so there is nothing to search in it"
        for found in ranges
        if found.setting not in searched
    ]
