"""One run: load the task and the model, apply the method, train with `transformers.Trainer`, record what came of it.

Training is what a user of Trainer gets, with nothing between the method and the loop; what is added only watches.
"""

from __future__ import annotations

import difflib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)

from glora.experiments.failures import describe_failure
from glora.experiments.measurement import PeakMemory
from glora.experiments.methods import Application, Schedule, find_method
from glora.experiments.metrics import compute
from glora.experiments.models import find_head_modules, find_target_modules, load_classifier, tokenize
from glora.experiments.progress import RunProgress
from glora.experiments.provenance import collect_provenance, utc_now
from glora.experiments.records import RunRecord
from glora.experiments.tasks import load_task
from glora.experiments.watched_trainer import Journal, WatchedTrainer, rehearse

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from glora.experiments.adaptation import Adaptation
    from glora.experiments.models import TokenizedTask
    from glora.experiments.spec import RunConfig
    from glora.experiments.task_data import TaskData

DATA_SEED_STRIDE = 10_007
"""accelerate orders epoch e by seed + e, so neighbouring seeds would see each other's orders one epoch later."""


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


def run(config: RunConfig, *, progress: RunProgress | None = None) -> RunRecord:
    """Make one run.

    Whatever goes wrong in it is an outcome, not an exception: the record then says "failed", with the error and what
    had been measured. Ctrl-C is not an outcome.

    Args:
        config: the run's settings.
        progress: what to tell how far it is; by default nobody.

    Returns:
        The run's record, not yet written anywhere.
    """
    progress = progress or RunProgress()
    measured = Measurements(config)
    try:
        _run(config, progress, measured)
        record = measured.record()
    except Exception as error:
        record = measured.record(error)
    progress.run_ends(record)
    return record


def example_counts(config: RunConfig) -> dict[str, int]:
    """Split -> number of examples, "train" first. Loads the task, once for all runs that share it.

    Raises:
        ValueError, FileNotFoundError: the task cannot be loaded.
    """
    task = _task(config)
    return {"train": len(task.train)} | {name: len(rows) for name, rows in task.evaluation.items()}


def data_fingerprint(config: RunConfig) -> str:
    """What the data are, whatever they are called and wherever they lie: `TaskData.fingerprint`.

    Raises:
        ValueError, FileNotFoundError: the task cannot be loaded.
    """
    return _task(config).fingerprint


def _run(config: RunConfig, progress: RunProgress, measured: Measurements) -> None:
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

    model, tokenizer = load_classifier(
        config.model,
        num_labels=task.num_labels,
        label_names=task.label_names,
        regression=task.regression,
        seed=config.seed,
    )
    tokens = _tokenized(config, task, tokenizer)
    set_seed(config.seed)  # the adapters' initialisation, the same for methods with the same factors
    adaptation = method.apply(
        Application(
            model=model,
            config=config,
            schedule=schedule,
            target_modules=target_modules(model, config.target_modules),
            head_modules=find_head_modules(model),
        )
    )
    measured.fields |= {
        "initial_ranks": adaptation.initial_ranks,
        "module_shapes": adaptation.module_shapes,
        "trainable_parameters_before": adaptation.trainable_parameters(),
        "adapter_parameters_before": adaptation.adapter_parameters(),
    }
    journal = Journal(adaptation, primary_split, progress)
    memory = PeakMemory()
    try:
        with tempfile.TemporaryDirectory(prefix="glora-") as scratch:
            trainer = _trainer(config, adaptation, tokens, tokenizer, task, journal, Path(scratch))
            rehearse(trainer)
            trainer.train()
    finally:
        measured.fields |= {
            "steps": journal.steps,
            "metrics": journal.metrics,
            "norms": journal.norms,
            "seconds_per_step": journal.clock.seconds_per_step,
            "peak_memory_bytes": memory.read(),
            "peak_memory_source": memory.source,
            "ranks": adaptation.ranks(),
            "reallocated_at": adaptation.reallocated_at,
        }
    measured.fields |= {
        "final": journal.final,
        "train_seconds": journal.train_seconds,
        "trainable_parameters_after": adaptation.trainable_parameters(),
        "adapter_parameters_after": adaptation.adapter_parameters(),
    }


def _trainer(
    config: RunConfig,
    adaptation: Adaptation,
    tokens: TokenizedTask,
    tokenizer: PreTrainedTokenizerBase,
    task: TaskData,
    journal: Journal,
    scratch: Path,
) -> WatchedTrainer:
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=2 * config.batch_size,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.lr_warmup,
        weight_decay=config.weight_decay,
        bf16=config.precision == "bfloat16",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        seed=config.seed,
        data_seed=config.seed * DATA_SEED_STRIDE,
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,  # the filter would hide from the journal that training has diverged
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        label_names=["labels"],  # Trainer cannot find them out behind PEFT's forward
    )
    # batch_size is examples per optimiser step; Trainer would multiply it by the number of GPUs in the machine.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = WatchedTrainer(
        model=adaptation.model,
        args=arguments,
        train_dataset=tokens.train,
        eval_dataset=tokens.evaluation,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda evaluated: compute(task.metrics, evaluated.predictions, evaluated.label_ids),
        callbacks=list(adaptation.callbacks),
        journal=journal,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def target_modules(model: PreTrainedModel, wanted: Sequence[str] | None) -> list[str]:
    """Full names of the matrices to adapt: those of the encoder, or those whose name is or ends with a wanted one.

    Raises:
        ValueError: a wanted name matches no linear layer of the encoder, naming the nearest.
    """
    names = find_target_modules(model)
    if wanted is None:
        return names
    for suffix in wanted:
        if not any(_ends_with(name, suffix) for name in names):
            endings = sorted({".".join(name.split(".")[-k:]) for name in names for k in (1, 2)})
            near = difflib.get_close_matches(suffix, endings, n=3, cutoff=0.4)
            raise ValueError(
                f"target_modules: {suffix!r} matches no linear layer of the encoder of {type(model).__name__}; "
                f"{'the nearest are' if near else 'there are'} {', '.join(near or endings)}"
            )
    return [name for name in names if any(_ends_with(name, suffix) for suffix in wanted)]


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _task(config: RunConfig) -> TaskData:
    return _load_task_once(config.task, config.data_dir, config.train_limit, config.eval_limit)


@functools.lru_cache(maxsize=2)
def _load_task_once(name: str, data_dir: str | None, train_limit: int | None, eval_limit: int | None) -> TaskData:
    return load_task(name, data_dir=data_dir, train_limit=train_limit, eval_limit=eval_limit)


_last_tokenized: dict[tuple[Any, ...], TokenizedTask] = {}


def _tokenized(config: RunConfig, task: TaskData, tokenizer: PreTrainedTokenizerBase) -> TokenizedTask:
    """The task's tokens; those of the last call are kept, because the runs of a comparison share them."""
    key = (config.model, config.max_length, task.fingerprint)
    if key not in _last_tokenized:
        _last_tokenized.clear()
        _last_tokenized[key] = tokenize(task, tokenizer, config.max_length)
    return _last_tokenized[key]
