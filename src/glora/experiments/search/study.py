"""Studies in a database, and the work items that processes take from them, by Optuna.

An item is a trial of a search, a seed or a run: one trial, which waits from the start. A worker takes the next one, and Optuna
keeps its heartbeat. The promise is "at least once": the trial of a worker that was killed or interrupted waits again
(`SharedStorage`), and an item may be made twice if its worker was killed or cut off. Two workers may fill a study together, or
try a failed item again at the same time: of several trials of an item the first counts that did not fail.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna import Study, Trial
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from glora.experiments.records.interrupts import record_before_interrupts
from glora.experiments.search.storage import ERROR, HEARTBEAT_SECONDS, STARTS, SharedStorage

FILLING_SECONDS = 5.0
"""Time that the creator of a study has to fill it before another worker helps."""

ITEM = "item"
"""User attribute of a trial: the name of its item."""

STUDY_CONFIG = "study_config"
"""User attribute of a study: what workers must agree on to share it. An entry of None is not known yet."""


class StudyMismatchError(ValueError):
    """A study of this name has another configuration."""


class TrialFailedError(Exception):
    """A trial failed. This is its outcome; other trials continue."""


class TakenOverError(BaseException):
    """Another worker has the trial; Optuna writes no outcome for a BaseException."""


@dataclass(frozen=True)
class Job:
    """Work on a study.

    Attributes:
        study: from `open_study`.
        items: their names.
        do: makes the item `item_of(trial)` and returns its value; may raise `TrialFailedError` or `optuna.TrialPruned`.
    """

    study: Study
    items: Collection[str]
    do: Callable[[Trial], float]


def open_study(
    storage: SharedStorage,
    name: str,
    items: Mapping[str, Mapping[str, Any]],
    study_config: Mapping[str, Any],
    *,
    direction: str = "maximize",
    pruner: optuna.pruners.BasePruner | None = None,
) -> Study:
    """Create a study with its items (name -> fixed parameters), or open the one that another worker created.

    Raises:
        StudyMismatchError: the study has another configuration.
    """
    try:
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, pruner=pruner)
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, pruner=pruner)
        until = time.monotonic() + FILLING_SECONDS
        while STUDY_CONFIG not in study.user_attrs and time.monotonic() < until:
            time.sleep(0.1)
    _check_config(study, study_config)
    found = read_items(study)
    for item, params in items.items():
        if item not in found:
            study.enqueue_trial(dict(params), {ITEM: item})
    there = study.user_attrs.get(STUDY_CONFIG, {})
    known = {**study_config, **{entry: value for entry, value in there.items() if value is not None}}
    if known != there:  # last: it says that the study is full
        study.set_user_attr(STUDY_CONFIG, known)
    return study


def find_study(storage: SharedStorage, name: str, study_config: Mapping[str, Any]) -> Study | None:
    """Return the study that `open_study` would open, None if there is none; add nothing.

    Raises:
        StudyMismatchError: the study has another configuration.
    """
    try:
        study = optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        return None
    _check_config(study, study_config)
    fail_stale_trials(study)
    return study


def read_items(study: Study) -> dict[str, FrozenTrial]:
    """Return the trial of each item that counts: the first that did not fail, else the last."""
    found: dict[str, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        item = trial.user_attrs.get(ITEM)
        if item and (item not in found or found[item].state == TrialState.FAIL):
            found[item] = trial
    return found


def open_items(study: Study) -> int:
    """Return the number of items that are neither done nor failed."""
    return sum(not trial.state.is_finished() for trial in read_items(study).values())


def item_of(trial: FrozenTrial | Trial) -> str:
    """Return the name of a trial's item."""
    return str(trial.user_attrs.get(ITEM))


def retry_failed(study: Study) -> None:
    """Add another trial for each item that failed."""
    for item, trial in read_items(study).items():
        if trial.state == TrialState.FAIL:
            study.enqueue_trial(trial.params, {ITEM: item})


def confirm_progress(trial: Trial) -> None:
    """Record that a part of the item is kept, so that it is not what kills its workers.

    Raises:
        TakenOverError: this worker was suspended or cut off from the database, and another one makes the item.
    """
    now = trial.study.get_trials(deepcopy=False)[trial.number]
    if (now.state, now.datetime_start) != (TrialState.RUNNING, trial.datetime_start):
        raise TakenOverError
    trial.set_user_attr(STARTS, 0)


def work(jobs: Sequence[Job], *, waiting: Callable[[int], None], look_after: float | None = None) -> None:
    """Make the open items of some studies together with other workers, until none is open anywhere.

    Args:
        jobs: the studies, the first ones first.
        waiting: called with the number of items that others are making, when there is nothing else to do.
        look_after: seconds between two looks at them; by default HEARTBEAT_SECONDS / 2.

    Raises:
        KeyboardInterrupt: Ctrl-C; the item that was being made is free for others at once.
    """
    left = list(jobs)
    while left:
        took = any(_take_one(job) for job in left)
        counts = [open_items(job.study) for job in left]
        left = [job for job, count in zip(left, counts) if count]
        if left and not took:
            waiting(sum(counts))
            time.sleep(HEARTBEAT_SECONDS / 2 if look_after is None else look_after)


@record_before_interrupts()
def _take_one(job: Job) -> bool:
    """Make one item of a study; return False if none is waiting."""
    study, interrupted = job.study, list[BaseException]()
    fail_stale_trials(study)
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return False

    def objective(trial: Trial) -> float:
        try:
            # Optuna adds a trial without an item where the queue has become empty
            if item_of(trial) not in job.items or read_items(study)[item_of(trial)].number != trial.number:
                raise TrialFailedError("another trial of this item counts")
            trial.set_user_attr(STARTS, trial.user_attrs.get(STARTS, 0) + 1)
            return job.do(trial)
        except TrialFailedError as error:
            trial.set_user_attr(ERROR, str(error))
            raise
        except (optuna.TrialPruned, UpdateFinishedTrialError, TakenOverError):
            raise
        except BaseException as error:
            interrupted.append(error)
            with contextlib.suppress(Exception):  # the database may be away
                trial.set_user_attr(STARTS, 0)
            raise

    # Optuna cannot end a trial that another worker took over: this one was suspended, or cut off from the database.
    with contextlib.suppress(UpdateFinishedTrialError, ValueError, AssertionError, TakenOverError):
        study.optimize(objective, n_trials=1, catch=TrialFailedError)
    if interrupted:
        raise interrupted[0]
    return True


def _check_config(study: Study, study_config: Mapping[str, Any]) -> None:
    there = study.user_attrs.get(STUDY_CONFIG, study_config)
    differences = [
        f"\n  - {entry}: it has {there.get(entry)}; now {study_config.get(entry)}"
        for entry in dict.fromkeys((*there, *study_config))
        if there.get(entry) != study_config.get(entry)
        and None not in (there.get(entry, ""), study_config.get(entry, ""))  # not known yet
    ]
    if differences:
        raise StudyMismatchError(
            f"the study {study.study_name!r} in this storage differs:{''.join(differences)}\nUse its values to continue it, or "
            "name another --output, or with --storage another --study"
        )
