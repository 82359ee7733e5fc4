"""Runs that any number of processes share: each is made once, and every process ends with all records.

A process claims a whole seed, that is a run of each method one after the other, so that their times can be compared; or a
single run, where there are more processes than seeds (`shared_plan`). A record is written to the folder of the process that
made it, as ever, and kept in the storage (`shared_records`), from where the others write it to theirs. A process that takes
over a seed makes only what has no record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import optuna
from optuna import Trial

from glora.experiments.plan import Plan, PlannedRun
from glora.experiments.records.schema import RunRecord, finished_records
from glora.experiments.records.store import keep_record
from glora.experiments.search.shared_records import SharedRecords
from glora.experiments.search.shared_trials import (
    ADVANCED,
    Job,
    TrialFailedError,
    open_study,
    read_slots,
    retry_failed,
    slot_of,
    work,
)
from glora.experiments.search.sharing import Sharing, plan_names, slots_of, study_name, terms_of
from glora.messages import pluralize

if TYPE_CHECKING:
    from glora.experiments.training.progress import RunProgress


def make_shared_runs(
    sharing: Sharing,
    plans: Sequence[Plan],
    progress: RunProgress,
    *,
    make_run: Callable[..., RunRecord] | None = None,
    look_after: float | None = None,
) -> tuple[RunRecord, ...]:
    """Make the runs of plans together with whoever else makes them; a run that failed before is tried once more.

    Args:
        sharing: with whom.
        plans: what is to be done, one plan for a model and a data set.
        progress: what to tell how far it is.
        make_run: makes one run; by default `train.run`.
        look_after: seconds between two looks at runs that others make; by default half a heartbeat.

    Returns:
        The records of all runs, whoever made them, failed ones too. A run whose processes were killed every time has none.

    Raises:
        StudyMismatchError: another process has other runs, settings or data under the same name.
        RecordKeptElsewhereError: a record could not be written where it belongs.
        KeyboardInterrupt: Ctrl-C; what is finished is kept, and what was under way is free for others.
    """
    from glora.experiments.training.run import runs_of

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what becomes of runs, the progress says
    shared = [_SharedPlan(sharing, plan, name) for plan, name in zip(plans, plan_names(sharing, plans))]

    def left() -> list[PlannedRun]:
        return [run for each in shared for run in each.left()]

    to_make = left()
    progress.begin(len(to_make), sum(run.schedule.total_steps for run in to_make))

    def before_each_run() -> None:
        progress.left(len(left()))
        for each in shared:
            each.gather()

    def waiting(_slots: int) -> None:
        for each in shared:
            each.gather()
        progress.waiting(f"other processes are making {pluralize(len(left()), 'run')}")

    claims = sorted(  # seed by seed, all models and data sets alike
        ((position, each) for each in shared for position in range(len(each.studies))), key=lambda claim: claim[0]
    )
    jobs = [
        Job(each.studies[position], each.maker(progress, make_run or runs_of(each.plan.output), before_each_run))
        for position, each in claims
    ]
    interval = sharing.storage.heartbeat_interval
    assert interval is not None
    try:
        work(jobs, waiting=waiting, look_after=interval / 2 if look_after is None else look_after, in_turn=False)
    finally:
        for each in shared:
            each.gather()
    return tuple(record for each in shared for record in each.collect(progress))


class _SharedPlan:
    """A plan, the studies of its seeds, and its records in the storage."""

    def __init__(self, sharing: Sharing, plan: Plan, name: str) -> None:
        self.plan = plan
        self._slots = slots_of(plan, sharing.claim)
        terms = terms_of(plan, sharing.claim)
        self.studies = [
            open_study(sharing.storage, study_name(name, seed), list(slots), terms)
            for seed, slots in self._slots.items()
        ]
        self._records = SharedRecords(sharing.storage, name)
        self._here = finished_records(plan.output)
        for run in plan.runs:
            if run.config.key in self._here.keys() - self._records.finished():
                self._records.add(self._here[run.config.key])
        for study in self.studies:
            retry_failed(study)

    def maker(
        self, progress: RunProgress, make_run: Callable[..., RunRecord], before_each: Callable[[], None]
    ) -> Callable[[Trial], float]:
        """What makes the runs of a slot that is claimed, but for those that have a record."""
        runs_of_slot = {slot: runs for slots in self._slots.values() for slot, runs in slots.items()}

        def make(trial: Trial) -> float:
            errors = []
            runs = runs_of_slot[slot_of(trial)]
            for run in runs:
                before_each()
                if run.config.key in self._records.finished():
                    continue
                record = make_run(run.config, self.plan.task, progress=progress)
                keep_record(self.plan.output, record)
                self._records.add(record)
                trial.set_user_attr(ADVANCED, True)
                if record.status == "failed":
                    errors.append(str(record.error))
                else:
                    self._here[record.key] = record
            if errors:
                raise TrialFailedError(errors[0])
            return float(len(runs))

        return make

    def left(self) -> list[PlannedRun]:
        """The runs that are not finished, of slots that somebody is yet to end."""
        finished = self._records.finished()
        return [
            run
            for study, slots in zip(self.studies, self._slots.values())
            for name, slot in read_slots(study).items()
            if slot.state in ("open", "lost")
            for run in slots[name]
            if run.config.key not in finished
        ]

    def gather(self) -> None:
        """Write what others have finished to the folder."""
        keys = {run.config.key for run in self.plan.runs}
        for key, record in self._records.read().items():
            if key in keys and key not in self._here and record.status == "finished":
                keep_record(self.plan.output, record)
                self._here[key] = record

    def collect(self, progress: RunProgress) -> list[RunRecord]:
        """All records, when nothing is left; those that failed elsewhere are written to the folder too."""
        there, found = self._records.read(), []
        for run in self.plan.runs:
            key = run.config.key
            record = self._here.get(key) or there.get(key)
            if record is None:
                progress.say(
                    f"{run.config.method}, seed {run.config.seed} was given up: its processes were killed, every time"
                )
                continue
            if key not in self._here:
                keep_record(self.plan.output, record)
            found.append(record)
        return found
