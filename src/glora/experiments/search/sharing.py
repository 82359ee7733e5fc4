"""Runs that workers share: who claims what, the records in the database, and making the runs.

A worker claims a whole seed (a run of each method, whose times can then be compared) or a single run. There is a study for each
model, data set and seed, so that workers with different seeds share those that they have in common. It holds the records too,
each as a trial. Every worker ends with the same records: of two finished ones of a run the first in the database counts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState, create_trial

from glora.experiments.models.resolution import resolve_model
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.number_format import distinct_names, printable
from glora.experiments.plan import Plan, PlannedRun
from glora.experiments.records.interrupts import record_before_interrupts
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import finished_records, keep_record
from glora.experiments.search.plan import WEIGHTS
from glora.experiments.search.storage import SharedStorage, StorageError, open_storage
from glora.experiments.search.study import (
    Job,
    TrialFailedError,
    confirm_progress,
    find_study,
    item_of,
    open_study,
    read_items,
    retry_failed,
    work,
)
from glora.experiments.training.progress import RunProgress
from glora.experiments.training.run import runs_of
from glora.messages import get_logger, pluralize

DEFAULT_CLAIM = "seeds"
STATES = ("finished", "being made", "failed", "waiting")

PART, FIRST_PART = 5_000, "part 0"
"""Characters of a record in one user attribute of its trial: "part 0", "part 1", ... MySQL's TEXT holds 65,535 bytes, and the
JSON of a character takes up to 12."""

MAX_REASON = 300
"""Characters of the reason why a record is ignored; it may quote the record."""


@dataclass(frozen=True)
class Sharing:
    """Work that processes share: its database, its name, and what they claim ("seeds" or "runs")."""

    storage: SharedStorage
    name: str
    claim: str = DEFAULT_CLAIM


def open_sharing(url: str | None, study: str | None, claim: str | None, output: Path) -> Sharing:
    """Open what the user gave as --storage, --study and --claim; by default the output folder names the work.

    Raises:
        StorageError: the storage cannot be used, or there is none.
    """
    if url is None:
        given = f"study={study!r}" if study is not None else f"claim={claim!r}"
        raise StorageError(f"{given} is for shared runs; name the database: --storage URL")
    return Sharing(open_storage(url), study or output.resolve().name, claim or DEFAULT_CLAIM)


def make_shared_runs(
    sharing: Sharing,
    plans: Sequence[Plan],
    progress: RunProgress,
    *,
    make_run: Callable[..., RunRecord] | None = None,
    look_after: float | None = None,
) -> tuple[RunRecord, ...]:
    """Make the runs of plans together with other workers; failed runs are tried once more.

    `make_run` makes one run, by default `training.run.run`; `look_after` is as for `study.work`.

    Returns:
        The records of all runs, failed ones too. A run whose workers were killed every time has none.

    Raises:
        StudyMismatchError: another worker has other runs, settings or data under the same name.
        RecordKeptElsewhereError: a record could not be written to the output folder.
        KeyboardInterrupt: Ctrl-C; finished runs are kept, and another worker can take the interrupted one.
    """
    shared = _shared_seeds(sharing, plans)

    def gather() -> int:
        return sum(each.gather() for each in shared)

    with sharing.storage.errors_reported():
        here = {plan.output: finished_records(plan.output) for plan in plans}
        for each in shared:
            each.open(here[each.plan.output])
        to_make = [run for each in shared for run in each.left()]
        progress.begin(len(to_make), sum(run.schedule.total_steps for run in to_make))
        try:
            work(
                [each.job(progress, make_run or runs_of(each.plan.output), gather) for each in shared],
                waiting=lambda _: progress.waiting(f"other processes are making {pluralize(gather(), 'run')}"),
                look_after=look_after,
            )
        except BaseException:
            with contextlib.suppress(Exception):  # the database may be away
                gather()
            raise
        gather()
        records = {key: record for each in shared for key, record in each.records().items()}
    configs = [run.config for plan in plans for run in plan.runs]
    for config in configs:
        if config.key not in records:
            progress.say(f"{config.method}, seed {config.seed} is given up: every worker that tried died")
    return tuple(records[config.key] for config in configs if config.key in records)


def look(sharing: Sharing, plans: Sequence[Plan]) -> tuple[dict[str, int], ...]:
    """Return how many runs of each plan are finished, being made, failed and waiting; make none.

    Raises:
        StudyMismatchError: as in `make_shared_runs`.
    """
    with sharing.storage.errors_reported():
        looks = [(each.plan, each.look()) for each in _shared_seeds(sharing, plans)]
    return tuple({state: sum(found[state] for p, found in looks if p is plan) for state in STATES} for plan in plans)


def _shared_seeds(sharing: Sharing, plans: Sequence[Plan]) -> list[_SharedSeed]:
    """Name each plan's seeds in the database; with folders of a model or data set only where its name alone is ambiguous.

    A model or data set in different folders has different keys, so it cannot be shared; the study's configuration says so.
    """
    firsts = [plan.runs[0].config for plan in plans]
    tasks, models = (distinct_names(config.setting(name) for config in firsts) for name in ("task", "model"))
    names = [f"{sharing.name} / {tasks[config.task]} / {models[config.model]} / runs" for config in firsts]
    study_configs = [_study_config(plan, sharing.claim) for plan in plans]
    seeds = dict.fromkeys(run.config.seed for plan in plans for run in plan.runs)  # all models and data sets alike
    return [
        _SharedSeed(sharing, plan, runs, f"{name} / seed {seed}", study_config)
        for seed in seeds
        for plan, name, study_config in zip(plans, names, study_configs)
        if (runs := [run for run in plan.runs if run.config.seed == seed])
    ]


def _study_config(plan: Plan, claim: str) -> dict[str, Any]:
    """Return what workers must agree on: all settings of the runs but the seed."""
    first = plan.runs[0].config
    configs = {run.config.method: run.config for run in plan.runs if run.config.seed == first.seed}
    settings = {method: config.recorded_settings() for method, config in configs.items()}
    shared: dict[str, Any] = {"claim": claim, "methods": ", ".join(configs), "data": plan.task.fingerprint}
    for name in dict.fromkeys(name for given in settings.values() for name in given if name not in ("method", "seed")):
        values = {method: given.get(name) for method, given in settings.items()}
        if not any(value is not None for value in values.values()):
            continue
        equal = all(value == values[first.method] for value in values.values())
        shared[name] = values[first.method] if equal else ", ".join(f"{m} {value}" for m, value in values.items())
    return {**shared, WEIGHTS: weights_fingerprint(resolve_model(first.model))}


class _SharedSeed:
    """The runs of a plan with one seed in the database: a study with what is claimed, and with the records.

    Attributes:
        items: name of what is claimed -> its runs.
    """

    def __init__(
        self, sharing: Sharing, plan: Plan, runs: Sequence[PlannedRun], name: str, study_config: Mapping[str, Any]
    ) -> None:
        self.plan, self._runs = plan, {run.config.key: run for run in runs}
        self._storage, self._name, self._config = sharing.storage, name, study_config
        self._study: Study  # from `open` or `look`
        self._records: dict[str, RunRecord] = {}
        self._read: set[int] = set()
        self._here: dict[str, str] = {}
        self.items: dict[str, list[PlannedRun]] = {}
        for run in runs:
            item = f"seed {run.config.seed}" + ("" if sharing.claim == "seeds" else f", {run.config.method}")
            self.items.setdefault(item, []).append(run)

    def open(self, here: Mapping[str, RunRecord]) -> None:
        """Create or open the study; hand in finished records of the output folder; retry what failed."""
        self._study = open_study(self._storage, self._name, {item: {} for item in self.items}, self._config)
        self._here = {key: record.model_dump_json() for key, record in here.items()}
        for key in self._runs.keys() & here.keys() - self._finished():
            self._add(here[key].model_copy(update={"key": key}))
        retry_failed(self._study)

    def job(self, progress: RunProgress, make_run: Callable[..., RunRecord], gather: Callable[[], int]) -> Job:
        """Return the work on the study: to make the runs of an item that are not finished."""

        def make(trial: Trial) -> float:
            errors = []
            for run in self.items[item_of(trial)]:
                progress.left(gather())
                if run.config.key in self._finished():
                    continue
                with record_before_interrupts():
                    record = make_run(run.config, self.plan.task, progress=progress)
                    keep_record(self.plan.output, record)
                    self._add(record)
                confirm_progress(trial)
                errors += [str(record.error)] if record.status == "failed" else []
            if errors:
                raise TrialFailedError(errors[0])
            return 0.0

        return Job(self._study, self.items, make)

    def left(self) -> list[PlannedRun]:
        """Return the unfinished runs of items that are open."""
        finished, trials = self._finished(), read_items(self._study)
        open_items = [runs for name, runs in self.items.items() if not trials[name].state.is_finished()]
        return [run for runs in open_items for run in runs if run.config.key not in finished]

    def gather(self) -> int:
        """Write the records of the database to the output folder; return how many runs are left."""
        for key, record in self.records().items():
            text = record.model_dump_json()  # NaN does not equal itself
            if key in self._runs and self._here.get(key) != text:
                keep_record(self.plan.output, record)
                self._here[key] = text
        return len(self.left())

    def look(self) -> dict[str, int]:
        """Count runs by state."""
        counts, states = dict.fromkeys(STATES, 0), dict.fromkeys(self.items, TrialState.WAITING)
        finished = {key for key, run in self._runs.items() if run.finished}
        if study := find_study(self._storage, self._name, self._config):
            self._study = study
            finished |= self._finished()
            states.update((name, trial.state) for name, trial in read_items(study).items())
        for name, runs in self.items.items():
            left, state = sum(run.config.key not in finished for run in runs), states[name]
            making = int(left > 0 and state == TrialState.RUNNING)
            counts["finished"] += len(runs) - left
            counts["being made"] += making
            counts["failed" if state == TrialState.FAIL else "waiting"] += left - making
        return counts

    def _finished(self) -> set[str]:
        return {key for key, record in self.records().items() if record.status == "finished"}

    def records(self) -> dict[str, RunRecord]:
        """Return the records in the database by key: the first finished one, else the last that failed."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.number in self._read or FIRST_PART not in trial.user_attrs:
                continue
            self._read.add(trial.number)
            record = _unpack(trial)
            if record and (record.key not in self._records or self._records[record.key].status == "failed"):
                self._records[record.key] = record
        return self._records

    def _add(self, record: RunRecord) -> None:
        """Keep a record for all workers. Optuna writes a finished trial with all its attributes in one transaction."""
        text = record.model_dump_json()
        parts = {f"part {i}": text[i * PART : (i + 1) * PART] for i in range(-(-len(text) // PART))}
        value = record.final.get(record.primary_metric or "", math.nan)  # for Optuna's own tools
        outcome: dict[str, Any] = {"value": value} if math.isfinite(value) else {"state": TrialState.FAIL}
        self._study.add_trial(create_trial(**outcome, user_attrs=parts))


def _unpack(trial: FrozenTrial) -> RunRecord | None:
    """Read a record that any worker may have written; None, with a warning, if it cannot be trusted."""
    try:
        text = "".join(trial.user_attrs[f"part {i}"] for i in range(len(trial.user_attrs)))
        record = RunRecord.model_validate_json(text)
        if record.key != record.config.key:
            raise ValueError(f"{record.key!r} is not the key of its configuration, {record.config.key!r}")
    except (KeyError, TypeError, ValueError) as error:
        reason = printable(str(error))[:MAX_REASON]
        get_logger().warning("record %d in the shared database is ignored: %s", trial.number, reason)
        return None
    return record
