"""Trainers that record what happens during training and change nothing else.

The recorder's clock stops while a split is evaluated or the norms are read, so that the times of methods can be compared.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.records.interrupts import hold_interrupts, raise_swallowed_interrupt
from glora.experiments.records.schema import EpochMetrics, NormSample, WrittenAnswer
from glora.experiments.training.measurement import TrainingClock
from glora.experiments.training.metrics import DivergedError
from glora.experiments.training.progress import RunProgress
from glora.rank_log import RankLogCallback, rank_log

NORM_SAMPLES = 50
"""Number of readings of the norms over the warm-up: enough for a curve, and each reading waits for the device."""


class RunRecorder(TrainerCallback):
    """Record losses, metrics, step times and averaged norms during training.

    Attributes:
        clock: seconds of training.
        metrics: every evaluation so far.
        norms: the averaged norms of the warm-up.
        final: the metrics of the last evaluation of each split.
        answers: some of the answers written in the last evaluation of the main split.
        steps: optimizer steps so far.
        train_seconds: seconds of the whole training; None until it ends.
    """

    def __init__(self, adapted: AdaptedModel, primary_split: str, progress: RunProgress) -> None:
        self.clock = TrainingClock()
        self.metrics: list[EpochMetrics] = []
        self.norms: list[NormSample] = []
        self.final: dict[str, float] = {}
        self.answers: list[WrittenAnswer] = []
        self.steps = 0
        self.train_seconds: float | None = None
        self._adapted = adapted
        self._primary_split = primary_split
        self._progress = progress
        self._sample_every = 1
        self._losses: list[tuple[float, int]] = []
        self._logged_at = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, at the time that the method's preparation took."""
        self._sample_every = max(1, math.ceil(self._adapted.warmup_steps / NORM_SAMPLES))
        self.clock.start(already=self._adapted.preparation_seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the time."""
        self.train_seconds = self.clock.seconds

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise an interrupt that a library has swallowed.

        Raises:
            KeyboardInterrupt: there was one.
        """
        raise_swallowed_interrupt()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the step's time, then read the norms with the clock stopped."""
        self.clock.step()
        self.steps = state.global_step
        with self.clock.paused():
            self._sample_norms()
            self._progress.step()

    def _sample_norms(self) -> None:
        warmup = self._adapted.warmup_steps
        if self.steps > warmup or (self.steps % self._sample_every and self.steps not in (1, warmup)):
            return
        norms = self._adapted.averaged_norms()
        if norms is not None:
            self.norms.append(NormSample(step=self.steps, values=norms))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Have the loss logged up to the evaluation that follows, however often it is logged in between."""
        control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the mean loss since the previous log; stop at once if it is not finite.

        Raises:
            DivergedError: the loss is NaN or infinite.
        """
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            if self.metrics and self.metrics[-1].step >= self._logged_at:
                self._losses.clear()  # they belong to the previous evaluation
            self._losses.append((loss, state.global_step - self._logged_at))
            self._logged_at = state.global_step
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the training loss is {loss} by step {state.global_step}: training has diverged",
                    advice=f"Lower the learning rate ({args.learning_rate:g}) or lengthen its warm-up",
                )

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report an evaluated batch."""
        self._progress.evaluation_batch()

    def evaluation_begins(self, split: str, batches: int) -> None:
        """Report the beginning of an evaluation."""
        self._progress.evaluation_begins(split, batches)

    def answers_written(self, split: str, answers: list[WrittenAnswer]) -> None:
        """Keep the answers to the main split."""
        if split == self._primary_split:
            self.answers = answers

    def evaluation_ends(self, split: str, epoch: float, values: dict[str, float], loss: float | None = None) -> None:
        """Keep a split's metrics, and its loss where that is not a metric."""
        steps = sum(steps for _, steps in self._losses)
        evaluated = EpochMetrics(
            epoch=epoch,
            step=self.steps,
            split=split,
            train_seconds=self.clock.seconds,
            train_loss=sum(loss * steps for loss, steps in self._losses) / steps if steps else None,
            loss=loss,
            values=values,
        )
        self.metrics.append(evaluated)
        prefix = "" if split == self._primary_split else f"{split}/"
        self.final |= {f"{prefix}{name}": value for name, value in values.items()}
        self._progress.evaluated(evaluated)


class TimedTrainer(Trainer):
    """`transformers.Trainer`, which reports evaluations to a recorder; a base class for TRL's trainers too."""

    not_metrics: frozenset[str] = frozenset({"loss", "runtime", "samples_per_second", "steps_per_second", "epoch"})
    """Values that an evaluation returns beside the task's metrics."""

    def __init__(self, *args: Any, recorder: RunRecorder, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorder = recorder
        self.add_callback(recorder)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the clock stopped: reporters do not make the run slower."""
        with self._recorder.clock.paused():
            super().log(logs, *args, **kwargs)

    def evaluation_batches(self, split: str) -> int:
        """Return the number of batches of a split."""
        return len(self.get_eval_dataloader(split))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate with the clock stopped. Trainer calls this once more for each split, by name."""
        with self._recorder.clock.paused():
            if not isinstance(eval_dataset, str):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            self._recorder.evaluation_begins(eval_dataset, self.evaluation_batches(eval_dataset))
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            if self.state.global_step >= self.state.max_steps and eval_dataset == list(self.eval_dataset)[-1]:
                hold_interrupts()  # nothing is left to do but to write the record
            values = {name.removeprefix(f"{metric_key_prefix}_"): value for name, value in metrics.items()}
            self._recorder.evaluation_ends(
                eval_dataset,
                float(self.state.epoch or 0.0),
                {name: float(value) for name, value in values.items() if name not in self.not_metrics},
                loss=float(values["loss"]) if "loss" in self.not_metrics and "loss" in values else None,
            )
            return metrics


class AdaptedModelLog(RankLogCallback):
    """Send the ranks and norms of any method to Trainer's reporters."""

    def __init__(self, trainer: Trainer, adapted: AdaptedModel) -> None:
        super().__init__(trainer)
        self._adapted = adapted

    def check(self) -> None:
        """Accept every method."""

    def values(self) -> dict[str, float]:
        """Return the ranks, and the norms during the warm-up."""
        adapted, step = self._adapted, self._trainer.state.global_step
        norms = adapted.averaged_norms() if step <= adapted.warmup_steps else None
        return rank_log(adapted.ranks(), adapted.adapter_parameters(), norms or {})


def warm_up_kernels(trainer: Trainer) -> None:
    """Run one batch forward and backward and discard it: no random number is consumed, no gradient stays.

    First-time work of a process (choosing kernels, loading libraries) would otherwise count as training time of the first
    method: 0.4 s with a small encoder on a CPU, more on a GPU.
    """
    dataset, model = trainer.train_dataset, trainer.model
    rows = [dataset[i] for i in range(min(len(dataset), trainer.args.per_device_train_batch_size))]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), trainer.accelerator.autocast():
        inputs = {name: tensor.to(trainer.args.device) for name, tensor in trainer.data_collator(rows).items()}
        model.train()
        trainer.compute_loss(model, inputs).backward()
    model.zero_grad()
