"""A search, from the first trial to the runs that are reported.

A trial is a run (`train.run`) on the tuning split; its value is the task's metric after the last step, as in the runs that are
reported. Then each method's best settings are run with all seeds on the real splits, as `glora compare` would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna import Study, Trial, TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from glora.experiments.config import RunConfig
from glora.experiments.plan import Plan, TaskLoader, plan_comparison
from glora.experiments.report.number_format import settings_text
from glora.experiments.search.plan import MethodSearch, SearchPlan
from glora.experiments.search.sampler import median_pruner, slot_name
from glora.experiments.search.shared_trials import (
    ERROR,
    SURPLUS,
    Job,
    Slot,
    TrialFailedError,
    open_slots,
    open_study,
    read_slots,
    retry_failed,
    slot_of,
    work,
)
from glora.experiments.search.space import chosen, config_faults, suggest
from glora.experiments.search.storage import HEARTBEAT_SECONDS, SharedStorage
from glora.experiments.training.progress import RunProgress, RunStopped
from glora.messages import pluralize

if TYPE_CHECKING:
    from glora.experiments.records.schema import EpochMetrics, RunRecord

FAILS_ALL_RUNS = 3
"""If the first so many trials of a study fail with one error, the others would too."""

STORAGE_FAULTS = (UpdateFinishedTrialError, optuna.exceptions.StorageInternalError)


class SearchFailedError(ValueError):
    """No trial of a method has come to its end, so there are no settings to run with."""


@dataclass(frozen=True)
class StudyOutcome:
    """What a study has found.

    Attributes:
        search: what was searched.
        slots: its trials.
        best: the best of those that were trained to their end; None if there is none. Of equal ones it is the first, so
            that all processes that share the study choose the same.
    """

    search: MethodSearch
    slots: tuple[Slot, ...]
    best: FrozenTrial | None

    @property
    def values(self) -> dict[str, Any]:
        """Setting -> the best value."""
        return chosen(self.best.params, self.search.ranges) if self.best else {}

    @property
    def counts(self) -> dict[str, int]:
        """How many trials were trained to their end, stopped early, and failed or diverged."""
        last = [slot.last for slot in self.slots]
        failed = [trial for trial in last if ERROR in trial.user_attrs or trial.state == TrialState.FAIL]
        stopped = [trial for trial in last if trial.state == TrialState.PRUNED and ERROR not in trial.user_attrs]
        complete = sum(trial.state == TrialState.COMPLETE for trial in last)
        return {"complete": complete, "stopped early": len(stopped), "failed": len(failed)}


def run_trials(
    plan: SearchPlan,
    storage: SharedStorage,
    progress: RunProgress,
    *,
    make_run: Callable[..., RunRecord] | None = None,
    look_after: float = HEARTBEAT_SECONDS / 2,
) -> tuple[StudyOutcome, ...]:
    """Make the trials that are left, together with the other processes that share the storage.

    Args:
        plan: what is searched.
        storage: where the studies are kept.
        progress: what to tell how far it is.
        make_run: makes one run; by default `train.run`.
        look_after: seconds between two looks at trials that others make.

    Returns:
        What each study has found, in the order of `plan.studies`.

    Raises:
        StudyMismatchError: a study of this name was made for another search.
        SearchFailedError: in some study no trial came to its end, or the first FAILS_ALL_RUNS failed alike. If the same search
            is begun again, its failed trials are.
        KeyboardInterrupt: Ctrl-C; finished trials are kept, and the one under way is made again.
    """
    if make_run is None:
        from glora.experiments.training.run import runs_of

        make_run = runs_of(plan.output)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what becomes of trials, the progress says
    studies = [_open(plan, search, storage) for search in plan.studies]

    def left() -> int:
        return sum(map(open_slots, studies))

    steps = sum(search.schedule.total_steps for search in plan.studies) / max(1, len(plan.studies))
    progress.begin(left(), round(left() * steps), noun="trial")
    jobs = [Job(study, _objective(search, make_run, progress, left)) for study, search in zip(studies, plan.studies)]
    work(
        jobs,
        waiting=lambda running: progress.waiting(f"other processes are making {pluralize(running, 'trial')}"),
        look_after=look_after,
    )
    outcomes = tuple(_outcome(study, search) for study, search in zip(studies, plan.studies))
    fruitless = [_why(outcome) for outcome in outcomes if outcome.best is None]
    if fruitless:
        raise SearchFailedError("\n".join(fruitless))
    return outcomes


def plan_tuned_runs(plan: SearchPlan, outcomes: Sequence[StudyOutcome]) -> tuple[Plan, ...]:
    """The runs that are reported: one plan for each model and data set, each method with its best settings.

    Raises:
        InvalidComparisonError: naming every fault that can be found. RecordError: a record cannot be read.
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


def _open(plan: SearchPlan, search: MethodSearch, storage: SharedStorage) -> Study:
    study = open_study(
        storage,
        search.study_name(plan.name),
        [slot_name(number) for number in range(search.trials)],
        search.terms,
        direction=search.direction,
        sampler=search.sampler,
        pruner=median_pruner(search.trials),
    )
    if not any(slot.state == "done" for slot in read_slots(study).values()):
        retry_failed(study)
    return study


def _objective(
    search: MethodSearch, make_run: Callable[..., RunRecord], progress: RunProgress, left: Callable[[], int]
) -> Callable[[Trial], float]:
    def objective(trial: Trial) -> float:
        _refuse_hopeless(search, trial.study)
        progress.left(left())
        values = suggest(trial, search.ranges)
        name = f"{search.method.name}, {slot_of(trial)}"
        faults = config_faults(search.method, search.base, values, search.examples["train"])
        if faults:
            raise _bad_settings(trial, progress, f"{name} cannot be trained ({settings_text(values)})", faults[0], 0)
        config = search.method.normalise(search.base.with_settings(values), search.base.seed)
        watch = _TrialWatch(progress, trial, search, config, name)
        try:
            record = make_run(config, search.task, progress=watch)
        except RunStopped:
            if watch.fault is not None:
                raise watch.fault from None
            progress.run_over(f"{name}: stopped, below the median of the others ({settings_text(values)})", watch.steps)
            raise TrialPruned from None
        error = record.failure
        value = record.final.get(search.metric, math.nan)
        if record.status == "finished" and not math.isfinite(value):
            error = f"{search.metric} is {value}"
        if record.diverged or (record.status == "finished" and error):
            raise _bad_settings(trial, progress, f"{name} diverged ({settings_text(values)})", error, watch.steps)
        if error:
            progress.run_over(f"{name} failed: {error}", watch.steps)
            raise TrialFailedError(error)
        progress.run_over(f"{name}: {search.metric} {value:.4f} ({settings_text(values)})", watch.steps)
        return value

    return objective


def _bad_settings(trial: Trial, progress: RunProgress, message: str, error: str, steps: int) -> TrialPruned:
    """Told to Optuna as a trial that was stopped, which TPE learns to avoid; it forgets those that failed."""
    progress.run_over(f"{message}: {error}", steps)
    trial.set_user_attr(ERROR, error)
    return TrialPruned(error)


class _TrialWatch(RunProgress):
    """Passes on how far a trial is, tells Optuna each epoch's value, and ends the trial when the pruner says so.

    Not before a method has allocated its ranks: until then it is uniform LoRA, and it is not to be judged by that. And not
    after the last step, when there is nothing left to save.
    """

    def __init__(self, shown: RunProgress, trial: Trial, search: MethodSearch, config: RunConfig, name: str) -> None:
        self._shown, self._trial, self._search, self._config, self._name = shown, trial, search, config, name
        self._total_steps = 0
        self._epochs = 0
        self.steps = 0
        self.fault: Exception | None = None
        """What the storage said when it was told; not the trial's fault."""

    @override
    def run_begins(self, config: RunConfig, steps: int, *, name: str | None = None) -> None:
        self._total_steps = steps
        self._shown.run_begins(config, steps, name=self._name)

    @override
    def preparing(self, what: str, how_far: str = "") -> None:
        self._shown.preparing(what, how_far)

    @override
    def step(self) -> None:
        self.steps += 1
        self._shown.step()

    @override
    def evaluation_begins(self, split: str, batches: int) -> None:
        self._shown.evaluation_begins(split, batches)

    @override
    def evaluation_batch(self) -> None:
        self._shown.evaluation_batch()

    @override
    def evaluated(self, metrics: EpochMetrics) -> None:
        self._shown.evaluated(metrics)
        self._epochs += 1
        try:
            self._trial.report(metrics.values[self._search.metric], self._epochs)
            stop = metrics.step < self._total_steps and metrics.step >= self._warmup() and self._trial.should_prune()
        except STORAGE_FAULTS as error:
            self.fault = error
            raise RunStopped from error
        if stop:
            raise RunStopped

    def _warmup(self) -> int:
        if "warmup_steps" not in self._search.method.settings:
            return 0
        schedule = self._search.schedule
        return type(schedule)(self._total_steps, schedule.steps_per_epoch).warmup_steps(
            self._config.allocation.warmup_steps
        )

    @override
    def say(self, message: str) -> None:
        self._shown.say(message)


def _outcome(study: Study, search: MethodSearch) -> StudyOutcome:
    slots = tuple(read_slots(study).values())
    complete = [trial for trial in study.get_trials(states=(TrialState.COMPLETE,)) if SURPLUS not in trial.user_attrs]
    sign = -1 if search.direction == "maximize" else 1
    best = min(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number), default=None)
    return StudyOutcome(search, slots, best)


def _refuse_hopeless(search: MethodSearch, study: Study) -> None:
    slots = read_slots(study).values()
    errors = [slot.last.user_attrs.get(ERROR) for slot in slots if slot.state == "failed"]
    if len(errors) >= FAILS_ALL_RUNS and len(set(errors)) == 1 and not any(slot.state == "done" for slot in slots):
        raise SearchFailedError(
            f"the first {pluralize(len(errors), 'trial')} of {_named(search)} failed alike: {_remedied(errors[0])}"
        )


def _why(outcome: StudyOutcome) -> str:
    error = outcome.slots[-1].last.user_attrs.get(ERROR)
    trials = "the only trial" if len(outcome.slots) == 1 else f"none of the {len(outcome.slots)} trials"
    ended = "did not come" if len(outcome.slots) == 1 else "came"
    return (
        f"{trials} of {_named(outcome.search)} {ended} to its end, so there are no settings to run with. The last one: "
        f"{_remedied(error)}"
    )


def _named(search: MethodSearch) -> str:
    return f"{search.method.name} on {search.base.task}"


def _remedied(error: str | None) -> str:
    reason = (error or "its process was killed, again and again").rstrip(".")
    return (
        f"{reason}. Mend that and give the same command again; to search with other settings or "
        "ranges, name another --output, or with --storage another --study"
    )
