"""One run: load the task and the model, apply the method, train with Trainer, record what came of it.

Training is what a user of Trainer gets, with nothing between the method and the loop; what is added only watches.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, set_seed

from glora.experiments.data.registry import load_task
from glora.experiments.methods.base import MethodContext, Schedule, find_method
from glora.experiments.records.failures import describe_failure
from glora.experiments.records.provenance import collect_provenance, utc_now
from glora.experiments.records.schema import RunRecord
from glora.experiments.training.measurement import PeakMemory
from glora.experiments.training.progress import RunProgress, RunStopped
from glora.experiments.training.reporting import LOGS_FOLDER, AdaptedModelLog, report_folder
from glora.experiments.training.task_kinds import find_kind
from glora.experiments.training.timed_trainer import RunRecorder, warm_up_kernels
from glora.experiments.training.training_batches import training_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from glora.experiments.config import RunConfig
    from glora.experiments.data.task import TaskData
    from glora.experiments.models.tokenization import TokenizedTask


class Measurements:
    """The fields of `RunRecord`, filled in as they become known: a failed run keeps what was measured until then."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.started_at = utc_now()
        self.fields: dict[str, Any] = {}
        self.fingerprint: str | None = None

    def record(self, error: BaseException | None = None) -> RunRecord:
        """The run's record, as finished or, with an error, as failed."""
        outcome: dict[str, Any] = {"status": "finished"}
        if error is not None:
            line, trace = describe_failure(error)
            outcome = {"status": "failed", "error": line, "traceback": trace}
        return RunRecord(
            config=self.config,
            key=self.config.key,
            started_at=self.started_at,
            finished_at=utc_now(),
            provenance=collect_provenance(data_fingerprint=self.fingerprint),
            **outcome,
            **self.fields,
        )


def run(config: RunConfig, *, progress: RunProgress | None = None, logs: Path | None = None) -> RunRecord:
    """Make one run.

    Whatever goes wrong in it is an outcome, not an exception: the record then says "failed", with the error and what
    had been measured. Ctrl-C is not an outcome.

    Args:
        config: the run's settings.
        progress: what to tell how far it is; by default nobody.
        logs: where a run with `report_to` is reported, in a folder named by its key; by default `logs` in the working
            folder.

    Returns:
        The run's record, not yet written anywhere.

    Raises:
        RunStopped: `progress` has ended the run.
    """
    progress = progress or RunProgress()
    measured = Measurements(config)
    try:
        _run(config, progress, measured, logs or Path(LOGS_FOLDER))
        record = measured.record()
    except RunStopped:
        raise
    except Exception as error:
        record = measured.record(error)
    progress.run_ends(record)
    return record


def runs_of(output: Path) -> Callable[..., RunRecord]:
    """`run`, for the runs of one experiment: reported, if they are, into the experiment's folder."""
    return functools.partial(run, logs=output / LOGS_FOLDER)


def example_counts(config: RunConfig) -> dict[str, int]:
    """Split -> number of examples, "train" first. Loads the task, once for all runs that share it.

    Raises:
        ValueError, FileNotFoundError: the task cannot be loaded.
    """
    task = _task(config)
    return {"train": len(task.train)} | {name: len(rows) for name, rows in task.evaluation.items()}


def count_target_matrices(config: RunConfig) -> int:
    """Number of matrices that are adapted; loads the model.

    Raises:
        ValueError, FileNotFoundError: the task or the model cannot be loaded, or `target_modules` matches nothing.
    """
    task = _task(config)
    kind = find_kind(task.kind)
    return len(kind.target_modules(kind.load_model(config, task)[0], config.target_modules))


def primary_metric(config: RunConfig) -> str:
    """The metric that the task is judged by.

    Raises:
        ValueError, FileNotFoundError: the task cannot be loaded.
    """
    return _task(config).primary_metric


def data_fingerprint(config: RunConfig) -> str:
    """What the data are, whatever they are called and wherever they lie: `TaskData.fingerprint`.

    Raises:
        ValueError, FileNotFoundError: the task cannot be loaded.
    """
    return _task(config).fingerprint


def _run(config: RunConfig, progress: RunProgress, measured: Measurements, logs: Path) -> None:
    method = find_method(config.method)
    examples = example_counts(config)
    schedule = Schedule.of(examples["train"], config.batch_size, config.epochs)
    progress.run_begins(config, schedule.total_steps)
    task = _task(config)
    primary_split = next(iter(task.evaluation))
    measured.fingerprint = task.fingerprint
    measured.fields |= {
        "primary_metric": task.primary_metric,
        "examples": examples,
    }

    kind = find_kind(task.kind)
    model, tokenizer = kind.load_model(config, task)
    tokens = _tokenized(config, task, model, tokenizer)
    collate = kind.collator(tokenizer)
    memory = PeakMemory()
    set_seed(config.seed)  # the adapters' initialisation, the same for methods with the same factors
    adaptation = method.apply_to(
        MethodContext(
            model=model,
            config=config,
            schedule=schedule,
            target_modules=kind.target_modules(model, config.target_modules),
            target_parameters=kind.target_parameters(model, config.target_modules),
            head_modules=kind.head_modules(model),
            task_type=kind.adapter_task_type,
            batches=functools.partial(training_batches, tokens.train, collate, config.batch_size, config.seed),
            preparing=progress.preparing,
        )
    )
    measured.fields |= {
        "preparation_seconds": adaptation.preparation_seconds,
        "initial_ranks": adaptation.initial_ranks,
        "module_shapes": adaptation.module_shapes,
        "trainable_parameters_before": adaptation.trainable_parameters(),
        "adapter_parameters_before": adaptation.adapter_parameters(),
    }
    recorder = RunRecorder(adaptation, primary_split, progress)
    try:
        with tempfile.TemporaryDirectory(prefix="glora-") as scratch, report_folder(config, logs) as reported:
            folder = reported or Path(scratch)
            trainer = kind.trainer(config, adaptation, tokens, tokenizer, task, recorder, folder)
            trainer.remove_callback(PrinterCallback)
            if reported:
                trainer.add_callback(AdaptedModelLog(trainer, adaptation))
            trainer.optimizer = adaptation.make_optimizer(trainer.args)
            warm_up_kernels(trainer)
            trainer.train()
    finally:
        measured.fields |= {
            "steps": recorder.steps,
            "metrics": recorder.metrics,
            "norms": recorder.norms,
            "answers": recorder.answers,
            "seconds_per_step": recorder.clock.seconds_per_step,
            "peak_memory_bytes": memory.read(),
            "peak_memory_source": memory.source,
            "ranks": adaptation.ranks(),
            "reallocated_at": adaptation.reallocated_at,
        }
    measured.fields |= {
        "final": recorder.final,
        "train_seconds": recorder.train_seconds,
        "trainable_parameters_after": adaptation.trainable_parameters(),
        "adapter_parameters_after": adaptation.adapter_parameters(),
    }


def _task(config: RunConfig) -> TaskData:
    return _load_task_once(config.task, config.data_dir, config.train_limit, config.eval_limit, config.held_out)


@functools.lru_cache(maxsize=2)
def _load_task_once(
    name: str, data_dir: str | None, train_limit: int | None, eval_limit: int | None, held_out: float | None
) -> TaskData:
    return load_task(name, data_dir=data_dir, train_limit=train_limit, eval_limit=eval_limit, held_out=held_out)


_last_tokenized: dict[tuple[Any, ...], TokenizedTask] = {}


def _tokenized(
    config: RunConfig, task: TaskData, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> TokenizedTask:
    """The task's tokens; those of the last call are kept, because the runs of a comparison share them."""
    key = (config.model, config.max_length, task.fingerprint)
    if key not in _last_tokenized:
        _last_tokenized.clear()
        _last_tokenized[key] = find_kind(task.kind).tokenize(config, task, model, tokenizer)
    return _last_tokenized[key]
