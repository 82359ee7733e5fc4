"""Make one run: load the model, apply the method, train with Trainer, return the record.

Training is what any user of Trainer gets, with nothing between the method and the loop; what is added only watches.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import MethodContext, Schedule
from glora.experiments.methods.registry import find_method
from glora.experiments.models.loading import build_skeleton
from glora.experiments.models.resolution import resolve_model
from glora.experiments.models.tokenization import TokenizedTask
from glora.experiments.models.weights import weights_fingerprint
from glora.experiments.records.failures import describe_failure
from glora.experiments.records.interrupts import hold_interrupts
from glora.experiments.records.output_folder import SCRATCH
from glora.experiments.records.provenance import collect_provenance, utc_now
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import process_tag
from glora.experiments.training.measurement import PeakMemory
from glora.experiments.training.metrics import majority_class
from glora.experiments.training.progress import RunProgress, RunStopped
from glora.experiments.training.reporting import LOGS_FOLDER, report_folder
from glora.experiments.training.task_kinds import find_kind
from glora.experiments.training.timed_trainer import AdaptedModelLog, RunRecorder, warm_up_kernels
from glora.experiments.training.training_arguments import training_batches

ADAPTERS_FOLDER = "adapters"


TokenCache = dict[tuple[object, ...], TokenizedTask]
"""The tokens of the last model and task, which consecutive runs share."""


def run(
    config: RunConfig,
    task: TaskData,
    *,
    progress: RunProgress | None = None,
    output: Path | None = None,
    cache: TokenCache | None = None,
) -> RunRecord:
    """Make one run.

    A failure is an outcome, not an exception: the record then has the status "failed", the error and what was measured before
    it. Ctrl-C is not an outcome.

    Args:
        config: the run's settings.
        task: its loaded task.
        progress: receives the run's progress.
        output: folder for temporary files, for the reports of a run with `report_to` (in `logs`), and for its adapter with
            `save_adapters` (in `adapters`), each in a folder named by its key; by default
            the working folder, and the system's folder for temporary files.
        cache: keeps the tokens for the next run.

    Returns:
        The run's record, not yet written.

    Raises:
        RunStopped: `progress` has ended the run.
    """
    progress = progress or RunProgress()
    started_at = utc_now()
    measured: dict[str, Any] = {"provenance": collect_provenance(data_fingerprint=task.fingerprint)}
    outcome: dict[str, Any] = {"status": "finished"}

    def record() -> RunRecord:
        times: dict[str, Any] = {"started_at": started_at, "finished_at": utc_now()}
        return RunRecord(config=config, key=config.key, **times, **outcome, **measured)

    try:
        _train(config, task, progress, measured, output, {} if cache is None else cache)
        finished = record()
    except RunStopped:
        raise
    except Exception as error:
        hold_interrupts()
        outcome = {"status": "failed", **describe_failure(error)}
        finished = record()
    progress.run_ends(finished)
    return finished


def runs_of(output: Path) -> Callable[..., RunRecord]:
    """Return `run` for the runs of one experiment, which share a cache and a folder."""
    return functools.partial(run, output=output, cache={})


def count_target_matrices(config: RunConfig, task: TaskData) -> int:
    """Return the number of matrices that are adapted.

    Raises:
        ValueError, FileNotFoundError: the model cannot be loaded, or `target_modules` matches nothing.
    """
    kind = find_kind(task.kind)
    return len(kind.target_modules(build_skeleton(config, task.kind), config.target_modules))


def _train(
    config: RunConfig,
    task: TaskData,
    progress: RunProgress,
    measured: dict[str, Any],
    output: Path | None,
    cache: TokenCache,
) -> None:
    """Train, and fill in the fields of the record as they become known: a failed run keeps what it measured."""
    schedule = Schedule.of(len(task.train), config.batch_size, config.epochs)
    progress.run_begins(config, schedule.total_steps)
    measured |= {
        "primary_metric": task.primary_metric,
        "examples": task.example_counts,
        "baseline": majority_class(task),
    }

    kind = find_kind(task.kind)
    model, tokenizer = kind.load_model(config, task)
    fingerprint = weights_fingerprint(resolve_model(config.model))  # of the hub: its cache holds the model now
    measured["provenance"] = measured["provenance"].model_copy(update={"model_fingerprint": fingerprint})
    key = (config.model, config.max_length, task.fingerprint)
    if key not in cache:
        cache.clear()
        cache[key] = kind.tokenize(config, task, model, tokenizer)
    tokens = cache[key]
    memory = PeakMemory()
    set_seed(config.seed)  # the adapters' initialization, the same for methods with the same factors
    batches = functools.partial(
        training_batches, tokens.train, kind.collator(tokenizer), config.batch_size, config.seed
    )
    adapted = find_method(config.method).apply(
        MethodContext(
            model=model,
            config=config,
            schedule=schedule,
            target_modules=kind.target_modules(model, config.target_modules),
            target_parameters=kind.target_parameters(model, config.target_modules),
            head_modules=kind.head_modules(model),
            task_type=kind.adapter_task_type,
            batches=batches,
            preparing=progress.preparing,
        )
    )
    measured |= _before(adapted)
    recorder = RunRecorder(adapted, next(iter(task.evaluation)), progress)
    try:
        with _folders(config, output) as (folder, reported):
            trainer = kind.trainer(config, adapted, tokens, tokenizer, task, recorder, folder)
            trainer.remove_callback(PrinterCallback)
            if reported:
                trainer.add_callback(AdaptedModelLog(trainer, adapted))
            trainer.optimizer = adapted.make_optimizer(trainer.args)
            warm_up_kernels(trainer)
            trainer.train()
    finally:
        measured |= _so_far(adapted, recorder, memory)
    if config.save_adapters:
        save: Any = adapted.model.save_pretrained
        save((output or Path()) / ADAPTERS_FOLDER / config.key)
    measured |= {
        "final": recorder.final,
        "train_seconds": recorder.train_seconds,
        "trainable_parameters_after": adapted.trainable_parameters(),
        "adapter_parameters_after": adapted.adapter_parameters(),
    }


def _before(adapted: AdaptedModel) -> dict[str, Any]:
    """The fields of a record that are known before the first step."""
    return {
        "preparation_seconds": adapted.preparation_seconds,
        "initial_ranks": adapted.initial_ranks,
        "module_shapes": adapted.module_shapes,
        "trainable_parameters_before": adapted.trainable_parameters(),
        "adapter_parameters_before": adapted.adapter_parameters(),
    }


def _so_far(adapted: AdaptedModel, recorder: RunRecorder, memory: PeakMemory) -> dict[str, Any]:
    """The fields of a record that a failed run has, too."""
    return {
        "steps": recorder.steps,
        "metrics": recorder.metrics,
        "norms": recorder.norms,
        "answers": recorder.answers,
        "seconds_per_step": recorder.clock.seconds_per_step,
        "peak_memory_bytes": memory.read(),
        "peak_memory_source": memory.source,
        "ranks": adapted.ranks(),
        "reallocated_at": adapted.reallocated_at,
    }


@contextlib.contextmanager
def _folders(config: RunConfig, output: Path | None) -> Iterator[tuple[Path, bool]]:
    """The folder for Trainer's files, and whether it is that of a run with `report_to`, which stays."""
    if output:
        output.mkdir(parents=True, exist_ok=True)
    scratch_folder = tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{process_tag()}-", dir=output)
    with scratch_folder as scratch, report_folder(config, (output or Path()) / LOGS_FOLDER) as reported:
        yield reported or Path(scratch), reported is not None
