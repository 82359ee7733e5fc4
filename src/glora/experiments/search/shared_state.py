"""How far shared runs are, for a process that only looks: nothing is made, claimed or declared dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import TrialState

from glora.experiments.plan import Plan
from glora.experiments.search.shared_records import SharedRecords
from glora.experiments.search.shared_trials import find_study, read_slots, stale_trials
from glora.experiments.search.sharing import Sharing, plan_names, slots_of, study_name, terms_of


@dataclass(frozen=True)
class SharedState:
    """How far the runs of a plan are, whoever makes them.

    Attributes:
        finished: runs whose records are in the storage.
        being_made: runs that a living process is making.
        abandoned: runs whose process has died; another one takes them over.
        failed: runs that failed, or were given up; the same command tries them again.
        waiting: all others.
    """

    finished: int
    being_made: int
    abandoned: int
    failed: int
    waiting: int


def look(sharing: Sharing, plans: Sequence[Plan]) -> tuple[SharedState, ...]:
    """How far the runs of each plan are; nothing is made or claimed.

    Raises:
        StudyMismatchError: as in `make_shared_runs`.
    """
    return tuple(_look(sharing, plan, name) for plan, name in zip(plans, plan_names(sharing, plans)))


def _look(sharing: Sharing, plan: Plan, name: str) -> SharedState:
    finished = SharedRecords(sharing.storage, name, create=False).finished()
    finished |= {run.config.key for run in plan.runs if run.finished}
    terms, counts = terms_of(plan, sharing.claim), Counter[str]()
    for seed, slots in slots_of(plan, sharing.claim).items():
        study = find_study(sharing.storage, study_name(name, seed), terms)
        states = {} if study is None else read_slots(study)
        stale = set() if study is None else stale_trials(sharing.storage, study)
        for slot, runs in slots.items():
            left = [run for run in runs if run.config.key not in finished]
            counts["finished"] += len(runs) - len(left)
            if not left:
                continue
            trials = states[slot].trials if slot in states else ()
            under_way = next((trial for trial in trials if trial.state == TrialState.RUNNING), None)
            if slot in states and states[slot].state == "failed":
                counts["failed"] += len(left)
            elif under_way is not None:
                counts["abandoned" if under_way.number in stale else "being_made"] += 1
                counts["waiting"] += len(left) - 1
            else:
                counts["waiting"] += len(left)
    return SharedState(**{state: counts[state] for state in SharedState.__dataclass_fields__})
