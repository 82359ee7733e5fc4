"""Runs that any number of processes share: each is made once, and every process ends with all records.

A run is a slot of a study in the storage (`shared_trials`), under its key. Its record is written to the folder of the process
that made it, as ever, and kept in the storage too, from where the other processes write it to theirs.
"""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from optuna import Study, Trial
from optuna.trial import FrozenTrial

from glora.experiments.compare import Plan
from glora.experiments.record_keeping import keep_record
from glora.experiments.records import RunRecord, finished_records
from glora.experiments.shared_trials import (
    LONGEST_NAME,
    Job,
    TrialFailedError,
    open_slots,
    open_study,
    read_slots,
    retry_failed,
    slot_of,
    work,
)
from glora.experiments.study_storage import HEARTBEAT_SECONDS, SharedStorage

if TYPE_CHECKING:
    from glora.experiments.progress import RunProgress

CHUNK = 32_000
"""Characters of a record in one attribute: MySQL's TEXT, which Optuna uses, holds 65,535 bytes."""


def make_shared_runs(
    storage: SharedStorage,
    name: str,
    plans: Sequence[Plan],
    progress: RunProgress,
    *,
    make_run: Callable[..., RunRecord] | None = None,
    look_after: float = HEARTBEAT_SECONDS / 2,
) -> tuple[RunRecord, ...]:
    """Make the runs of plans together with whoever else makes them; a run that failed before is tried once more.

    Args:
        storage: what the processes share.
        name: what they call this work; those that use the same name share it.
        plans: what is to be done, one plan for a model and a data set.
        progress: what to tell how far it is.
        make_run: makes one run; by default `train.run`.
        look_after: seconds between two looks at runs that others make.

    Returns:
        The records of all runs, whoever made them.

    Raises:
        StudyMismatchError: another process has other data under the same name.
        RecordKeptElsewhereError: a record could not be written where it belongs.
        KeyboardInterrupt: Ctrl-C; what is finished is kept.
    """
    from glora.experiments.train import runs_of

    studies = [_open(storage, name, plan) for plan in plans]

    def left() -> int:
        return sum(map(open_slots, studies))

    progress.begin(left(), sum(plan.steps_to_make for plan in plans))
    jobs = [
        Job(study, _maker(plan, progress, make_run or runs_of(plan.output), left))
        for study, plan in zip(studies, plans)
    ]
    work(
        jobs,
        waiting=lambda running: progress.waiting(f"{running} of the runs are being made by other processes"),
        look_after=look_after,
    )
    return tuple(record for plan, job in zip(plans, jobs) for record in _collect(plan, job.study))


def _maker(
    plan: Plan, progress: RunProgress, make_run: Callable[..., RunRecord], left: Callable[[], int]
) -> Callable[[Trial], float]:
    runs = {run.config.key: run for run in plan.runs}

    def make(trial: Trial) -> float:
        key = slot_of(trial)
        progress.left(left())
        record = finished_records(plan.output).get(key)
        if record is None:
            record = make_run(runs[key].config, progress=progress)
            keep_record(plan.output, record)
        _attach(trial, record)
        if record.status == "failed":
            raise TrialFailedError(str(record.error))
        value = record.final[record.primary_metric or ""]
        return value if math.isfinite(value) else 0.0

    return make


def _collect(plan: Plan, study: Study) -> list[RunRecord]:
    """The records of a plan's runs; those that other processes made are written to the folder too."""
    here = finished_records(plan.output)
    slots = read_slots(study)
    records = []
    for run in plan.runs:
        record = here.get(run.config.key) or _attached(slots[run.config.key].last)
        if record is None:
            continue  # its processes were killed, every time
        if run.config.key not in here:
            keep_record(plan.output, record)
        records.append(record)
    return records


def _open(storage: SharedStorage, name: str, plan: Plan) -> Study:
    """The study of a plan's runs; other runs, with other seeds say, are another study, so that each process knows its own."""
    from glora.experiments.train import data_fingerprint

    config, keys = plan.runs[0].config, [run.config.key for run in plan.runs]
    digest = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:8]
    study_name = f"{name} / {config.task} / {config.model} / runs {digest}"[-LONGEST_NAME:]
    study = open_study(storage, study_name, keys, {"data fingerprint": data_fingerprint(config)})
    retry_failed(study)
    return study


def _attach(trial: Trial, record: RunRecord) -> None:
    text = base64.b64encode(zlib.compress(record.model_dump_json().encode())).decode()
    chunks = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
    for i, chunk in enumerate(chunks):
        trial.set_user_attr(f"record {i}", chunk)
    trial.set_user_attr("record", len(chunks))


def _attached(trial: FrozenTrial) -> RunRecord | None:
    count = trial.user_attrs.get("record")
    if count is None:
        return None
    text = "".join(trial.user_attrs[f"record {i}"] for i in range(count))
    return RunRecord.model_validate_json(zlib.decompress(base64.b64decode(text)))
