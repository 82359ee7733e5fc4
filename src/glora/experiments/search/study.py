"""Studies in a database, and the work items that processes take from them, by Optuna.

An item is a trial of a search, a seed or a run: one waiting trial from the start. A worker takes the next one, and Optuna keeps
its heartbeat. The promise is "at least once": no item is lost, and one may be made twice if its worker was killed or cut off.
Two rules make a kill harmless at every moment, without a lock:

* Any worker adds what a study lacks: a missing item, or another trial of an item whose worker died. (Optuna's retry callback
  runs only in the worker that found the death, and is lost if that worker dies too.)
* Of the trials of an item the first counts that is alive or done. A worker that took another one lets it go.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna import Study, Trial
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from glora.experiments.records.interrupts import record_before_interrupts
from glora.experiments.search.storage import HEARTBEAT_SECONDS, SharedStorage

FILLING_SECONDS = 5.0
"""Time that the creator of a study has to fill it before another worker helps."""

MAX_DEATHS = 3
"""Deaths without progress after which an item is given up: it may be what kills its workers, such as by lack of memory."""

ITEM, ERROR, INTERRUPTED, SURPLUS, PROGRESS = "item", "error", "interrupted", "surplus", "progress"
"""User attributes of a trial. PROGRESS: a part of the item is kept, so it is not what kills its workers."""

STUDY_CONFIG = "study_config"
"""User attribute of a study: what workers must agree on to share it. An entry of None is not known yet."""


class StudyMismatchError(ValueError):
    """A study of this name has another configuration."""


class TrialFailedError(Exception):
    """A trial failed. This is its outcome; other trials continue."""


@dataclass(frozen=True)
class Item:
    """State of a work item, and its trials by number, without those that were let go.

    "open" is waiting or running. "lost": its worker died or was interrupted, and there is no other trial yet.
    """

    name: str
    trials: tuple[FrozenTrial, ...]

    @property
    def state(self) -> Literal["done", "open", "failed", "lost"]:
        """Failed is an item by its own error, or after MAX_DEATHS deaths."""
        if any(map(_is_done, self.trials)):
            return "done"
        if any(map(_is_alive, self.trials)):
            return "open"
        deaths = [trial for trial in self.trials if not {ERROR, INTERRUPTED, PROGRESS} & set(trial.user_attrs)]
        return "failed" if ERROR in self.last.user_attrs or len(deaths) >= MAX_DEATHS else "lost"

    @property
    def last(self) -> FrozenTrial:
        """The trial that counts."""
        return next(filter(_is_done, self.trials), self.trials[-1])


@dataclass(frozen=True)
class Job:
    """Work on a study.

    Attributes:
        study: from `open_study`.
        items: name -> parameters whose values are fixed.
        do: makes the item `item_of(trial)` and returns its value; may raise `TrialFailedError` or `optuna.TrialPruned`.
    """

    study: Study
    items: Mapping[str, Mapping[str, Any]]
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
    _add_missing(study, items)
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


def read_items(study: Study) -> dict[str, Item]:
    """Return the items of a study."""
    trials: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        if ITEM in trial.user_attrs and SURPLUS not in trial.user_attrs:
            trials.setdefault(item_of(trial), []).append(trial)
    return {name: Item(name, tuple(found)) for name, found in trials.items()}


def open_items(study: Study) -> int:
    """Return the number of items that are neither done nor failed."""
    return sum(item.state in ("open", "lost") for item in read_items(study).values())


def item_of(trial: FrozenTrial | Trial) -> str:
    """Return the name of a trial's item."""
    return str(trial.user_attrs.get(ITEM))


def retry_failed(study: Study) -> None:
    """Add another trial for each item that failed."""
    for item in read_items(study).values():
        if item.state == "failed":
            study.enqueue_trial(item.last.params, {ITEM: item.name})


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
    study, interrupted = job.study, []
    fail_stale_trials(study)
    _add_missing(study, job.items)
    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return False

    def objective(trial: Trial) -> float:
        try:
            # Optuna adds a trial without an item where the queue has become empty
            if item_of(trial) not in job.items or _is_surplus(study, trial):
                trial.set_user_attr(SURPLUS, True)
                raise TrialFailedError("another trial of this item counts")
            return job.do(trial)
        except TrialFailedError as error:
            trial.set_user_attr(ERROR, str(error))
            raise
        except (optuna.TrialPruned, UpdateFinishedTrialError):
            raise
        except BaseException as error:
            interrupted.append(error)
            with contextlib.suppress(Exception):  # without a database its heartbeat ends, so that others take the item
                trial.set_user_attr(INTERRUPTED, True)
            raise

    try:
        study.optimize(objective, n_trials=1, catch=TrialFailedError)
    except (UpdateFinishedTrialError, ValueError, AssertionError):
        # Optuna cannot end a trial that another worker took over: this one was suspended, or cut off from the database.
        if interrupted:
            raise
    return True


def _add_missing(study: Study, items: Mapping[str, Mapping[str, Any]]) -> None:
    """Add a waiting trial for each item that has none, and for each whose worker died, with the same parameters."""
    found = read_items(study)
    for name, params in items.items():
        if name not in found or found[name].state == "lost":
            tried = found[name].last.params if name in found else {}
            study.enqueue_trial({**params, **tried}, {ITEM: name})


def _is_surplus(study: Study, mine: Trial) -> bool:
    """Return whether another trial of the item counts: it is done, or an earlier one is alive."""
    others = [trial for trial in read_items(study)[item_of(mine)].trials if trial.number != mine.number]
    return any(_is_done(trial) or (_is_alive(trial) and trial.number < mine.number) for trial in others)


def _is_done(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _is_alive(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.RUNNING, TrialState.WAITING)


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
