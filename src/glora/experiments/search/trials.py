"""The trials of a search, and the runs with the best settings.

A trial is a run on the tuning split; its value is the task's metric after the last step. TPE chooses its settings (Optuna's
tree-structured Parzen estimator, Bergstra et al. 2011), and the median rule stops bad trials early (Golovin et al. 2017):
Hyperband compares trials only within brackets, for which ten to fifty trials of a few epochs are too few.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna import Study, Trial, TrialPruned
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from glora.experiments.config import RunConfig
from glora.experiments.number_format import settings_text
from glora.experiments.plan import Plan, TaskLoader, plan_comparison
from glora.experiments.publishing import published_name
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.search.plan import MethodSearch, SearchPlan, how_chosen
from glora.experiments.search.record import (
    SCHEMA_VERSION,
    SearchRecord,
    TunedMethod,
    read_search_record,
    write_search_record,
)
from glora.experiments.search.space import chosen, config_errors, suggest
from glora.experiments.search.storage import ERROR, SharedStorage
from glora.experiments.search.study import (
    Job,
    TrialFailedError,
    item_of,
    open_items,
    open_study,
    read_items,
    retry_failed,
    work,
)
from glora.experiments.training.progress import RunProgress, RunStopped
from glora.experiments.training.run import runs_of
from glora.messages import pluralize

DONE = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of a trial that ended with a result."""

MAX_EQUAL_FAILURES = 3
"""If the first trials of a study fail with one error this often, the others would too."""


class SearchFailedError(ValueError):
    """No trial of a method finished, so there are no settings to run with."""


@dataclass(frozen=True)
class StudyOutcome:
    """Result of a study.

    Attributes:
        search: the study.
        trials: the trial of each item that counts.
        best: the best finished trial, None without one. Of equal ones it is the first, so that all workers agree.
    """

    search: MethodSearch
    trials: tuple[FrozenTrial, ...]
    best: FrozenTrial | None

    @property
    def values(self) -> dict[str, Any]:
        """Setting -> the best value."""
        return chosen(self.best.params, self.search.ranges) if self.best else {}

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials that finished, were stopped early, and failed or diverged."""
        complete = sum(trial.state == TrialState.COMPLETE for trial in self.trials)
        stopped = sum(trial.state == TrialState.PRUNED and ERROR not in trial.user_attrs for trial in self.trials)
        return {"complete": complete, "stopped early": stopped, "failed": len(self.trials) - complete - stopped}


def run_trials(
    plan: SearchPlan,
    storage: SharedStorage,
    progress: RunProgress,
    *,
    make_run: Callable[..., RunRecord] | None = None,
    look_after: float | None = None,
) -> tuple[StudyOutcome, ...]:
    """Make the open trials of a search together with other workers; return the results in the order of `plan.studies`.

    `make_run` makes one run, by default `training.run.run`; `look_after` is as for `study.work`.

    Raises:
        StudyMismatchError: a study of this name belongs to another search.
        SearchFailedError: no trial of a study finished, or the first MAX_EQUAL_FAILURES failed with one error. The same
            search, started again, tries failed trials of such a study again.
        KeyboardInterrupt: Ctrl-C; finished trials are kept, an interrupted one is repeated.
    """
    make_run = make_run or runs_of(plan.output)
    with storage.errors_reported():
        studies = [_open(name, search, storage) for name, search in zip(plan.study_names, plan.studies)]
        if read_search_record(plan.output) is None:
            write_search_record(plan.output, search_record(plan, ()))

        def left() -> int:
            return sum(map(open_items, studies))

        steps = sum(search.schedule.total_steps for search in plan.studies) / max(1, len(plan.studies))
        progress.begin(left(), round(left() * steps), noun="trial")
        work(
            [
                Job(study, search.trials, _Objective(search, make_run, progress, left))
                for study, search in zip(studies, plan.studies)
            ],
            waiting=lambda running: progress.waiting(f"other processes are making {pluralize(running, 'trial')}"),
            look_after=look_after,
        )
        outcomes = tuple(_outcome(study, search) for study, search in zip(studies, plan.studies))
    fruitless = [
        _advice(f"0 of {pluralize(len(each.trials), 'trial')} of {each.search.title} finished", each.trials[-1])
        for each in outcomes
        if each.best is None
    ]
    if fruitless:
        raise SearchFailedError("\n".join(fruitless))
    return outcomes


def plan_tuned_runs(plan: SearchPlan, outcomes: Sequence[StudyOutcome]) -> tuple[Plan, ...]:
    """Plan the runs that are reported: for each model and data set, each method with its best settings.

    Raises:
        InvalidComparisonError: naming every error. RecordError: a record cannot be read.
    """
    found = {id(outcome.search): outcome.values for outcome in outcomes}
    load = TaskLoader()
    return tuple(
        plan_comparison(
            plan.output,
            methods=[study.method.name for study in pair.studies],
            seeds=plan.seeds,
            settings=pair.settings,
            tuned={study.method.name: found.get(id(study), {}) for study in pair.studies},
            load=load,
        )
        for pair in plan.pairs
    )


def search_record(plan: SearchPlan, outcomes: Sequence[StudyOutcome]) -> SearchRecord:
    """Return the record of a search; without outcomes, of one that begins."""
    methods = [
        TunedMethod(
            task=published_name(outcome.search.base.task),
            model=published_name(outcome.search.base.model),
            rank=outcome.search.base.rank,
            method=outcome.search.method.name,
            searched=outcome.search.space,
            best=outcome.values,
            best_value=outcome.best.value or 0.0,
            best_trial=item_of(outcome.best),
            metric=outcome.search.metric,
            direction=outcome.search.direction,
            trials=outcome.counts,
            examples=outcome.search.task.example_counts,
            data_fingerprint=outcome.search.task.fingerprint,
        )
        for outcome in outcomes
        if outcome.best is not None
    ]
    first = plan.studies[0]
    return SearchRecord(
        schema_version=SCHEMA_VERSION,
        name=plan.name,
        trials=plan.options.trials,
        sampler=how_chosen(plan.studies),
        pruner=first.pruner,
        held_out=plan.options.held_out,
        trial_seed=first.base.seed,
        seeds=list(plan.seeds),
        methods=methods,
    )


def _open(name: str, search: MethodSearch, storage: SharedStorage) -> Study:
    study = open_study(
        storage,
        name,
        search.trials,
        search.study_config,
        direction=search.direction,
        pruner=MedianPruner(n_startup_trials=search.trials_before_pruning),
    )
    if not study.get_trials(deepcopy=False, states=DONE):
        retry_failed(study)
    return study


@dataclass(frozen=True)
class _Objective:
    """Makes one trial of a study."""

    search: MethodSearch
    make_run: Callable[..., RunRecord]
    progress: RunProgress
    left: Callable[[], int]

    def __call__(self, trial: Trial) -> float:
        search, progress = self.search, self.progress
        _check_failures(search, trial.study)
        progress.left(self.left())
        # A sampler that is seeded once draws the same first values in every worker, and again when a search is resumed.
        digest = hashlib.sha256(f"{search.options.seed} {item_of(trial)}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        trial.study.sampler = TPESampler(seed=seed, n_startup_trials=search.random_trials)
        values = suggest(trial, search.ranges)
        name, shown = f"{search.method.name}, {item_of(trial)}", settings_text(values)
        errors = config_errors(search.method, search.base, values, len(search.task.train))
        if errors:
            raise self._bad_settings(trial, f"{name} cannot be trained ({shown})", errors[0], 0)
        config = search.method.normalise(search.base.with_settings(values), search.base.seed)
        watch = _TrialWatch(progress, trial, search, config, name)
        try:
            record = self.make_run(config, search.task, progress=watch)
        except RunStopped:
            if watch.storage_error is not None:
                raise watch.storage_error from None
            progress.show_outcome(f"{name}: stopped, below the median of the others ({shown})", watch.steps)
            raise TrialPruned from None
        error = record.failure
        value = record.final.get(search.metric, math.nan)
        if record.status == "finished" and not math.isfinite(value):
            error = f"{search.metric} is {value}"
        if record.kind == "diverged" or (record.status == "finished" and error):
            raise self._bad_settings(trial, f"{name} diverged ({shown})", error, watch.steps)
        if error:
            progress.show_outcome(f"{name} failed: {error}", watch.steps)
            raise TrialFailedError(error)
        progress.show_outcome(f"{name}: {search.metric} {value:.4f} ({shown})", watch.steps)
        return value

    def _bad_settings(self, trial: Trial, message: str, error: str, steps: int) -> TrialPruned:
        """Count a trial as stopped early, which TPE learns to avoid; it ignores failed ones."""
        self.progress.show_outcome(f"{message}: {error}", steps)
        trial.set_user_attr(ERROR, error)
        return TrialPruned(error)


class _TrialWatch:
    """A `RunProgress` that also reports each epoch's value to Optuna, and stops the trial when the pruner says so.

    It stops no trial before its method has allocated ranks (until then it is uniform LoRA), nor after the last step.
    """

    def __init__(self, shown: RunProgress, trial: Trial, search: MethodSearch, config: RunConfig, name: str) -> None:
        self._shown, self._trial, self._search, self._config, self._name = shown, trial, search, config, name
        self._total_steps = self._epochs = self.steps = 0
        self.storage_error: Exception | None = None
        """An error of the database, which is not the trial's."""

    def __getattr__(self, event: str) -> Any:
        return getattr(self._shown, event)

    def run_begins(self, config: RunConfig, steps: int) -> None:
        self._total_steps = steps
        self._shown.run_begins(config, steps, name=self._name)

    def step(self) -> None:
        self.steps += 1
        self._shown.step()

    def evaluated(self, metrics: EpochMetrics) -> None:
        self._shown.evaluated(metrics)
        self._epochs += 1
        try:
            self._trial.report(metrics.values[self._search.metric], self._epochs)
            stop = metrics.step < self._total_steps and metrics.step >= self._warmup() and self._trial.should_prune()
        except Exception as error:  # in a run, every other error is the run's
            self.storage_error = error
            raise RunStopped from error
        if stop:
            raise RunStopped

    def run_ends(self, record: RunRecord) -> None:
        """Show nothing: the outcome of the trial is shown instead."""

    def _warmup(self) -> int:
        if "warmup_steps" not in self._search.method.settings:
            return 0
        schedule = replace(self._search.schedule, total_steps=self._total_steps)
        return schedule.warmup_steps(self._config.allocation)


def _outcome(study: Study, search: MethodSearch) -> StudyOutcome:
    trials = tuple(read_items(study).values())
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = -1 if search.direction == "maximize" else 1
    best = min(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number), default=None)
    return StudyOutcome(search, trials, best)


def _check_failures(search: MethodSearch, study: Study) -> None:
    failed = [trial for trial in read_items(study).values() if trial.state == TrialState.FAIL]
    same_error = len({trial.user_attrs.get(ERROR) for trial in failed}) == 1
    if len(failed) >= MAX_EQUAL_FAILURES and same_error and not study.get_trials(deepcopy=False, states=DONE):
        raise SearchFailedError(
            _advice(f"the first {pluralize(len(failed), 'trial')} of {search.title} failed with one error", failed[-1])
        )


def _advice(what: str, trial: FrozenTrial) -> str:
    error = trial.user_attrs.get(ERROR, "its workers were killed").rstrip(".")
    return (
        f"{what}: {error}. Fix it and run the same command again; for other settings or ranges name another --output, or "
        "with --storage another --study"
    )
