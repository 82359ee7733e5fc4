"""Work that any number of processes share: a study whose trials are asked for beforehand, each of which is done once.

A study has *slots*, the things to be done: the trials of a search by their numbers, or runs by their keys. For each slot
there is one waiting trial from the beginning; a process takes one, does it, takes the next, until none is left. Whose
process dies is found by its missing heartbeat, and its slot gets another trial with the same settings; Optuna knows how to
do both.

Nothing in Optuna puts several rows into a database at once, so a process can be killed between any two of them: after
making half of the trials, or after declaring a trial dead and before making its successor. Two rules make every such moment
harmless, and need no lock:

* Whatever a slot lacks, any process may add. So two of them may add it twice.
* Of the trials of a slot the first that is alive counts; a process that has taken another one lets it go.

So the number of trials that are done is exact, whichever processes come, go or die.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna import Study, Trial
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState, create_trial

from glora.experiments.search.storage import HEARTBEAT_SECONDS, NoTrialWaitingError, SharedStorage

SLOT, ERROR, INTERRUPTED, SURPLUS = "slot", "error", "interrupted", "surplus"
"""User attributes of a trial."""

ADVANCED = "advanced"
"""User attribute of a trial of which a part is done and kept: it is not what kills its processes."""

TERMS = "terms"
"""User attribute of a study: what must be equal for two processes to share it."""

LONGEST_NAME = 500
"""Characters of a study's name; Optuna's tables hold 512."""

MAX_DEATHS = 3
"""A trial that has taken so many processes with it is given up: it may be what kills them, for want of memory."""

PATIENCE_SECONDS = 2.0
"""What a process leaves to another that is about to do it: filling a study, replacing a trial. After so long it helps."""

State = Literal["done", "failed", "open", "lost"]


class StudyMismatchError(ValueError):
    """The study that is in the storage is another one.

    Attributes:
        differences: a sentence for each of its terms that differs.
    """

    def __init__(self, name: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        lines = "".join(f"\n  - {difference}" for difference in differences)
        super().__init__(
            f"the study {name!r} in this storage is another one:{lines}\nGive the same values to go on with it, or name "
            "another --output, or with --storage another --study"
        )


class TrialFailedError(Exception):
    """A trial has failed: that is its outcome, and the others go on."""


@dataclass(frozen=True)
class Slot:
    """What has become of one thing that was to be done.

    Attributes:
        name: the slot's name.
        trials: all trials of the slot that were not let go, by number.
        state: done; failed, by its own error or by having killed MAX_DEATHS processes; open, that is waiting or running; or
            lost, when its process died or was interrupted and it has no other trial yet.
    """

    name: str
    trials: tuple[FrozenTrial, ...]
    state: State

    @property
    def last(self) -> FrozenTrial:
        """The trial that counts."""
        done = [trial for trial in self.trials if _is_done(trial)]
        return done[0] if done else self.trials[-1]


def open_study(
    storage: SharedStorage,
    name: str,
    slots: Sequence[str],
    terms: Mapping[str, Any],
    *,
    direction: str = "maximize",
    sampler: optuna.samplers.BaseSampler | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> Study:
    """Make a study with its trials, or find it as another process has made it.

    Args:
        storage: where it is kept.
        name: its name in the storage.
        slots: what is to be done; slots that the study does not have yet are added to it.
        terms: what two processes must agree in to share it, as JSON has it.
        direction: "maximize" or "minimize".
        sampler: chooses settings; not kept in the storage.
        pruner: ends trials; not kept in the storage.

    Raises:
        StudyMismatchError: the study has other terms.
    """
    storage.heartbeat_stale_trial_callback = _replace
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction=direction, sampler=sampler, pruner=pruner
        )
        study.set_user_attr(TERMS, dict(terms))
    except DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
        if TERMS in study.user_attrs:
            _check_terms(study, terms)
        _wait_until_filled(study, slots)
        if TERMS not in study.user_attrs:  # its maker was killed at once
            study.set_user_attr(TERMS, dict(terms))
    _check_terms(study, terms)
    _fill(study, slots)
    return study


def find_study(storage: SharedStorage, name: str, terms: Mapping[str, Any]) -> Study | None:
    """The study that `open_study` would open, if there is one; only to look at it.

    Raises:
        StudyMismatchError: the study has other terms.
    """
    try:
        study = optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        return None
    if TERMS in study.user_attrs:
        _check_terms(study, terms)
    return study


def stale_trials(storage: SharedStorage, study: Study) -> set[int]:
    """The numbers of the running trials whose processes give no sign of life, before anybody has declared them dead."""
    stale = set(storage._get_stale_trial_ids(study._study_id))
    return {trial.number for trial in study.get_trials(deepcopy=False) if trial._trial_id in stale}


def read_slots(study: Study) -> dict[str, Slot]:
    """What has become of every slot."""
    chains: dict[str, list[FrozenTrial]] = {}
    for trial in study.get_trials(deepcopy=False):
        chains.setdefault(slot_of(trial), [])
        if SURPLUS not in trial.user_attrs:
            chains[slot_of(trial)].append(trial)
    return {name: Slot(name, tuple(trials), _state(trials)) for name, trials in chains.items() if trials}


def work(
    jobs: Sequence[Job],
    *,
    waiting: Callable[[int], None] = lambda _running: None,
    look_after: float = HEARTBEAT_SECONDS / 2,
    in_turn: bool = True,
) -> None:
    """Do what is left of some studies, together with whoever else works on them; ends when nothing is left to anybody.

    Args:
        jobs: studies from `open_study`, each with what does one of its slots.
        waiting: called with the number of trials that run elsewhere, whenever there is nothing to do but to see whether
            their processes live.
        look_after: seconds until the next look.
        in_turn: a slot of each study in turn, so that whenever the work is interrupted, they are about equally far;
            otherwise the slots of the first study, then those of the next.

    Raises:
        KeyboardInterrupt: Ctrl-C; the slot that was under way is free for others, and all else is kept.
    """
    left, losses = list(jobs), _Losses()
    while left:
        taking = (job for job in left if _take_one(job, losses))
        took = list(taking if in_turn else itertools.islice(taking, 1))
        running = {job.study.study_name: open_slots(job.study) for job in left}
        left = [job for job in left if running[job.study.study_name]]
        if left and not took:
            waiting(sum(running.values()))
            time.sleep(look_after)


@dataclass(frozen=True)
class Job:
    """A study, and what does one of its slots.

    Attributes:
        study: from `open_study`.
        do: takes a trial, whose slot is `slot_of(trial)`, and returns its value. It raises `TrialFailedError` or
            `optuna.TrialPruned` where that is the outcome.
    """

    study: Study
    do: Callable[[Trial], float]


def _take_one(job: Job, losses: _Losses) -> bool:
    """Do one slot of a study, if one is waiting."""
    losses.replace(job.study)
    shift = _Shift(job.study, job.do)
    try:
        with _quiet():
            job.study.optimize(shift, n_trials=1, catch=(TrialFailedError,))
    except NoTrialWaitingError:
        return False
    except KeyboardInterrupt:
        shift.give_back()
        raise
    except (UpdateFinishedTrialError, ValueError, AssertionError):  # as Optuna reacts when a trial is finished already
        if not shift.was_taken_over():
            raise
    return True


def open_slots(study: Study) -> int:
    """How many things are not done yet, whether somebody is at them or not."""
    return sum(slot.state in ("open", "lost") for slot in read_slots(study).values())


def retry_failed(study: Study) -> None:
    """Give slots that failed another trial."""
    for slot in read_slots(study).values():
        if slot.state == "failed":
            retry(study, slot.last)


def retry(study: Study, trial: FrozenTrial) -> None:
    """A new trial of the same slot with the same settings."""
    again = copy.deepcopy(trial)
    again.user_attrs = {SLOT: slot_of(trial)}
    with _quiet():
        RetryHeartbeatStaleTrialCallback()(study, again)


class _Shift:
    """One trial, from the moment at which it is taken."""

    def __init__(self, study: Study, do: Callable[[Trial], float]) -> None:
        self._study, self._do = study, do
        self._trial: Trial | None = None
        self._faulty = False

    def __call__(self, trial: Trial) -> float:
        self._trial = trial
        if _is_surplus(self._study, trial):
            trial.set_user_attr(SURPLUS, True)
            raise TrialFailedError("another trial does the same")
        try:
            return self._do(trial)
        except TrialFailedError as error:
            trial.set_user_attr(ERROR, str(error))
            raise
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, True)
            raise
        except (ValueError, AssertionError):
            self._faulty = True
            raise

    def give_back(self) -> None:
        """Let another process have it at once."""
        if self._trial is None:
            return
        frozen = self._study.get_trials()[self._trial.number]
        if frozen.state == TrialState.FAIL and ERROR not in frozen.user_attrs:
            retry(self._study, frozen)

    def was_taken_over(self) -> bool:
        """Whether others thought this process dead, because it was suspended or cut off from the storage."""
        if self._trial is None or self._faulty:
            return False
        frozen = self._study.get_trials()[self._trial.number]
        return frozen.state == TrialState.FAIL and not {ERROR, INTERRUPTED, SURPLUS} & set(frozen.user_attrs)


def _fill(study: Study, slots: Sequence[str]) -> None:
    present = {slot_of(trial) for trial in study.get_trials(deepcopy=False)}
    for slot in slots:
        if slot not in present:
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={SLOT: slot}))


def _wait_until_filled(study: Study, slots: Sequence[str]) -> None:
    """Leave it to the process that is filling the study, as long as it does: several would make a crowd of surplus trials."""
    count, since = -1, time.monotonic()
    while time.monotonic() - since < PATIENCE_SECONDS:
        present = {slot_of(trial) for trial in study.get_trials(deepcopy=False)}
        if TERMS in study.user_attrs and present >= set(slots):
            return
        if len(present) != count:
            count, since = len(present), time.monotonic()
        time.sleep(PATIENCE_SECONDS / 10)


def _check_terms(study: Study, terms: Mapping[str, Any]) -> None:
    there = study.user_attrs[TERMS]
    differences = [
        f"{term}: it has {_text(there.get(term))}; now {_text(terms.get(term))}"
        for term in dict.fromkeys((*there, *terms))
        if there.get(term) != terms.get(term)
    ]
    if differences:
        raise StudyMismatchError(study.study_name, differences)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {value[name]}" for name in value) or "none"
    return "none" if value is None else str(value)


def _replace(study: Study, trial: FrozenTrial) -> None:
    """Called by Optuna in the process that has declared a trial dead."""
    if read_slots(study)[slot_of(trial)].state == "lost":
        retry(study, trial)


class _Losses:
    """Slots that are lost. The process that has found a trial dead replaces it at once; if it dies too, another does."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], float] = {}

    def replace(self, study: Study) -> None:
        now = time.monotonic()
        lost = [slot for slot in read_slots(study).values() if slot.state == "lost"]
        for slot in lost:
            if now - self._since.setdefault((study.study_name, slot.last.number), now) >= PATIENCE_SECONDS:
                retry(study, slot.last)


def slot_of(trial: FrozenTrial | Trial) -> str:
    """The name of the slot that a trial belongs to."""
    return str(trial.user_attrs.get(SLOT, f"trial {trial.number}"))


def _is_done(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _is_alive(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.RUNNING, TrialState.WAITING)


def _state(trials: Sequence[FrozenTrial]) -> State:
    if any(map(_is_done, trials)):
        return "done"
    if any(map(_is_alive, trials)):
        return "open"
    deaths = [trial for trial in trials if not {ERROR, INTERRUPTED, ADVANCED} & set(trial.user_attrs)]
    return "failed" if ERROR in trials[-1].user_attrs or len(deaths) >= MAX_DEATHS else "lost"


def _is_surplus(study: Study, mine: Trial) -> bool:
    """Whether another trial of the slot counts: an earlier one that lives, or one that has ended and is no ancestor."""
    trials = study.get_trials(deepcopy=False)
    slot = slot_of(trials[mine.number])
    ancestors = RetryHeartbeatStaleTrialCallback.retry_history(trials[mine.number])
    others = [t for t in trials if slot_of(t) == slot and t.number != mine.number and SURPLUS not in t.user_attrs]
    return any(
        (_is_alive(other) and other.number < mine.number)
        or ((_is_done(other) or ERROR in other.user_attrs) and not _is_alive(other) and other.number not in ancestors)
        for other in others
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
