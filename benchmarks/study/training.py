"""One run of the study: train as `glora compare` does, choose the epoch, measure what is held out."""

from __future__ import annotations

import base64
import functools
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.records import versions
from benchmarks.study.design import WIDE, Run, chosen
from benchmarks.study.tasks import HELD_OUT, SELECTION, TASKS, Measured, StudyTask
from peft.tuners.lora import LoraLayer
from transformers import PrinterCallback, TrainerCallback, set_seed

from glora import accelerate_lora
from glora.compress import compress_adapter
from glora.experiments.config import RunConfig
from glora.experiments.data.task import TaskData
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import MethodContext, Schedule
from glora.experiments.methods.registry import find_method
from glora.experiments.models.tokenization import TokenizedTask
from glora.experiments.records.provenance import collect_provenance
from glora.experiments.training.progress import RunProgress
from glora.experiments.training.timed_trainer import RunRecorder, warm_up_kernels
from glora.experiments.training.training_arguments import training_batches


class Bench:
    """A task, read once; its runs share the examples."""

    def __init__(self, name: str, data: Path, model: str, task: StudyTask | None = None) -> None:
        self.name, self._task, self._model = name, task or TASKS[name], model
        self._data: TaskData = self._task.read(data)
        self._tokens: TokenizedTask | None = None

    def make(self, run: Run) -> Iterator[dict[str, Any]]:
        """Train, and yield the run's record; then that of the same adapter compressed, where the study compares it."""
        prepared = self.adapt(run)
        adapted = prepared.adapted
        accelerate(adapted)
        before = adapted.adapter_parameters()
        recorder = RunRecorder(adapted, SELECTION, RunProgress())
        best = BestEpoch(adapted)
        self.train(prepared, recorder, (SELECTION,), best)
        epoch = best.restore()
        record = {
            **run._asdict(),
            "compressed": False,
            "parameters": adapted.adapter_parameters(),
            "parameters_before": before,
            "steps": recorder.steps,
            "seconds": round(float(recorder.train_seconds or 0), 2),
            "selection": [round(loss, 5) for _, loss in best.losses],
            "epoch": epoch,
            "ranks": list(adapted.ranks().values()),
            "environment": environment(),
        }
        yield record | held_out(self.measure(prepared))
        if run.method == "lora" and run.where == "all" and run.rank >= WIDE / 2:
            made = compress_adapter(adapted.model, average_rank=run.rank / WIDE)
            smaller = {"compressed": True, "parameters": made.parameters, "ranks": list(made.ranks.values())}
            yield record | smaller | held_out(self.measure(prepared))

    def adapt(self, run: Run) -> Prepared:
        """Load the model, tokenize the task the first time, and apply the run's method."""
        method = find_method(run.method)
        settings = {**self._task.settings, "model": self._model, "rank": run.rank, "learning_rate": run.learning_rate}
        config = method.normalise(RunConfig(task=self.name, **settings), run.seed)
        kind = self._task.kind
        model, tokenizer = kind.load_model(config, self._data)
        if self._tokens is None:
            self._tokens = kind.tokenize(config, self._data, model, tokenizer)
        tokens, collate = self._tokens, kind.collator(tokenizer)
        set_seed(config.seed)
        adapted = method.apply(
            MethodContext(
                model=model,
                config=config,
                schedule=Schedule.of(len(tokens.train), config.batch_size, config.epochs),
                target_modules=chosen(kind.target_modules(model, None), run.where),
                head_modules=kind.head_modules(model),
                task_type=kind.adapter_task_type,
                batches=functools.partial(training_batches, tokens.train, collate, config.batch_size, config.seed),
            )
        )
        return Prepared(config, adapted, tokens, tokenizer, collate)

    def train(
        self, prepared: Prepared, recorder: RunRecorder, splits: Sequence[str], callback: TrainerCallback
    ) -> None:
        """Train, and evaluate these splits after each epoch."""
        tokens = TokenizedTask(prepared.tokens.train, {name: prepared.tokens.evaluation[name] for name in splits})
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self._task.kind.trainer(
                prepared.config, prepared.adapted, tokens, prepared.tokenizer, self._data, recorder, Path(scratch)
            )
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(callback)
            warm_up_kernels(trainer)
            trainer.train()

    def measure(self, prepared: Prepared) -> Measured:
        """Measure the held-out examples."""
        model = prepared.adapted.model.eval()
        return self._task.measure(model, prepared.tokens.evaluation[HELD_OUT], prepared.collate)


@dataclass(frozen=True)
class Prepared:
    """A model with its method applied, and what it is trained with."""

    config: RunConfig
    adapted: AdaptedModel
    tokens: TokenizedTask
    tokenizer: Any
    collate: Callable[[list[Any]], Any]


def accelerate(adapted: AdaptedModel) -> None:
    """Call accelerate_lora where the layers are plain LoRA's."""
    if any(
        type(layer).__module__.startswith("peft.tuners.lora.")
        for layer in adapted.model.modules()
        if isinstance(layer, LoraLayer)
    ):
        accelerate_lora(adapted.model)


class BestEpoch(TrainerCallback):
    """Keeps the adapter and the head of each epoch, and puts back those with the least loss on the selection split.

    Epochs that end before the ranks are final do not count: their adapters have another size.
    """

    def __init__(self, adapted: AdaptedModel) -> None:
        self._adapted = adapted
        self._kept: list[tuple[dict[str, int], float, dict[str, torch.Tensor]]] = []

    @property
    def losses(self) -> list[tuple[dict[str, int], float]]:
        """The ranks and the loss of each epoch."""
        return [(ranks, loss) for ranks, loss, _ in self._kept]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Keep what is trained."""
        loss = float(metrics[f"eval_{SELECTION}_loss"])
        self._kept.append((self._adapted.ranks(), loss, {name: p.detach().clone() for name, p in self._trained()}))

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in self._adapted.model.named_parameters():
            if parameter.requires_grad or "ranknum" in name:  # AdaLoRA divides by it
                yield name, parameter

    def restore(self) -> int:
        """Return the epoch, from 1."""
        final = self._adapted.ranks()
        epoch, (_, _, tensors) = min(
            ((epoch, kept) for epoch, kept in enumerate(self._kept, 1) if kept[0] == final), key=lambda each: each[1][1]
        )
        for name, parameter in self._trained():
            parameter.data.copy_(tensors[name])
        return epoch


def held_out(measured: Measured) -> dict[str, Any]:
    """Return a record's results on the held-out examples."""
    return {"loss": measured.loss, "score": measured.score, "losses": encode(measured.losses)}


def encode(losses: torch.Tensor) -> str:
    """Half-precision numbers, compressed, as text."""
    return base64.b85encode(zlib.compress(losses.half().numpy().tobytes(), 9)).decode()


def decode(text: str) -> np.ndarray[Any, Any]:
    """The losses of the held-out examples, in their order."""
    return np.frombuffer(zlib.decompress(base64.b85decode(text)), np.float16).astype(np.float64)


@functools.cache
def environment() -> dict[str, str]:
    """Versions and processor."""
    return {**versions(), "processor": collect_provenance().machine.cpu}
