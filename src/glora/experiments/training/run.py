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

from glora.experiments.methods.base import MethodContext, Schedule
from glora.experiments.methods.registry import find_method
from glora.experiments.records.failures import describe_failure
from glora.experiments.records.provenance import collect_provenance, utc_now
from glora.experiments.records.schema import RunRecord
from glora.experiments.training.measurement import PeakMemory
from glora.experiments.training.progress import RunProgress, RunStopped
from glora.experiments.training.reporting import LOGS_FOLDER, report_folder
from glora.experiments.training.task_kinds import find_kind
from glora.experiments.training.timed_trainer import AdaptedModelLog, RunRecorder, warm_up_kernels
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
        outcome = {"status": "finished"} if error is None else {"status": "failed", **describe_failure(error)}
        return RunRecord(
            config=self.config,
            key=self.config.key,
            started_at=self.started_at,
            finished_at=utc_now(),
            provenance=collect_provenance(data_fingerprint=self.fingerprint),
            **outcome,
            **self.fields,
        )


def run(
    config: RunConfig,
    task: TaskData,
    *,
    progress: RunProgress | None = None,
    logs: Path | None = None,
    tokens: TokenCache | None = None,
) -> RunRecord:
    """Make one run.

    Whatever goes wrong in it is an outcome, not an exception: the record then says "failed", with the error and what
    had been measured. Ctrl-C is not an outcome.

    Args:
        config: the run's settings.
        task: its task, loaded.
        progress: what to tell how far it is; by default nobody.
        logs: where a run with `report_to` is reported, in a folder named by its key; by default `logs` in the working
            folder.
        tokens: keeps the task's tokens for the next run.

    Returns:
        The run's record, not yet written anywhere.

    Raises:
        RunStopped: `progress` has ended the run.
    """
    progress = progress or RunProgress()
    measured = Measurements(config)
    try:
        _run(config, task, progress, measured, logs or Path(LOGS_FOLDER), tokens or TokenCache())
        record = measured.record()
    except RunStopped:
        raise
    except Exception as error:
        record = measured.record(error)
    progress.run_ends(record)
    return record


def runs_of(output: Path) -> Callable[..., RunRecord]:
    """Return `run` for the runs of one experiment: they share their tokens, and log into the experiment's folder."""
    return functools.partial(run, logs=output / LOGS_FOLDER, tokens=TokenCache())


def count_target_matrices(config: RunConfig, task: TaskData) -> int:
    """Return the number of matrices that are adapted; loads the model.

    Raises:
        ValueError, FileNotFoundError: the model cannot be loaded, or `target_modules` matches nothing.
    """
    kind = find_kind(task.kind)
    return len(kind.target_modules(kind.load_model(config, task)[0], config.target_modules))


def _run(
    config: RunConfig, task: TaskData, progress: RunProgress, measured: Measurements, logs: Path, cache: TokenCache
) -> None:
    method = find_method(config.method)
    schedule = Schedule.of(len(task.train), config.batch_size, config.epochs)
    progress.run_begins(config, schedule.total_steps)
    primary_split = next(iter(task.evaluation))
    measured.fingerprint = task.fingerprint
    measured.fields |= {
        "primary_metric": task.primary_metric,
        "examples": task.example_counts,
    }

    kind = find_kind(task.kind)
    model, tokenizer = kind.load_model(config, task)
    tokens = cache.tokenized(config, task, model, tokenizer)
    collate = kind.collator(tokenizer)
    memory = PeakMemory()
    set_seed(config.seed)  # the adapters' initialisation, the same for methods with the same factors
    adaptation = method.apply(
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


class TokenCache:
    """The tokens of the last task: the runs of one model and task share them."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._tokens: TokenizedTask | None = None

    def tokenized(
        self, config: RunConfig, task: TaskData, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> TokenizedTask:
        """Return the task's tokens for the model of a configuration."""
        key = (config.model, config.max_length, task.fingerprint)
        if self._tokens is None or key != self._key:
            self._tokens = find_kind(task.kind).tokenize(config, task, model, tokenizer)
            self._key = key
        return self._tokens
