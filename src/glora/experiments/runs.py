"""Make the runs of plans that are not finished, and write each record as soon as its run ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from glora.experiments.plan import Plan
from glora.experiments.records.interrupts import record_before_interrupts
from glora.experiments.records.output_folder import folder_in_use
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import RUNS_FOLDER, finished_record, keep_record
from glora.experiments.training.progress import RunProgress
from glora.experiments.training.run import runs_of
from glora.messages import pluralize


def make_runs(
    plans: Sequence[Plan], progress: RunProgress, *, make_run: Callable[..., RunRecord] | None = None
) -> tuple[RunRecord, ...]:
    """Make the runs of plans that are not finished.

    A failed run is recorded and the next one begins. But if the first run of a plan cannot load its model, neither can the
    others of that plan, and they are not made. After Ctrl-C the finished runs are on the disk, and the same plan leaves only
    the rest. A run that another command finished since the plan is not made again.

    Args:
        plans: what to do; one plan for each model and task.
        progress: receives the progress of the runs.
        make_run: makes one run, `make_run(config, task, progress=...)`; by default `training.run.run`.

    Returns:
        The records of the runs, made here or by another command since the plan.

    Raises:
        FolderInUseError: another command is making runs in the same folder.
        RecordKeptElsewhereError: a record could not be written to its folder.
    """
    left = sum(len(plan.to_make) for plan in plans)
    progress.begin(left, sum(plan.steps_to_make for plan in plans))
    records: list[RunRecord] = []
    with contextlib.ExitStack() as in_use:
        for output in dict.fromkeys(plan.output for plan in plans if plan.to_make):
            # some file systems refuse a folder only now: better than after the first run
            (output / RUNS_FOLDER).mkdir(parents=True, exist_ok=True)
            in_use.enter_context(folder_in_use(output))
        for plan in plans:
            make = make_run or runs_of(plan.output)
            for i, planned in enumerate(plan.to_make):
                left -= 1
                if (found := finished_record(plan.output, planned.config)) is not None:
                    records.append(found)
                    progress.left(left)
                    continue
                with record_before_interrupts():
                    record = make(planned.config, plan.task, progress=progress)
                    keep_record(plan.output, record)
                records.append(record)
                if i == 0 and record.kind == "no model" and len(plan.to_make) > 1:
                    more = len(plan.to_make) - 1
                    progress.say(f"{pluralize(more, 'run')} more would need the same model: not made")
                    left -= more
                    progress.left(left)
                    break
    return tuple(records)
