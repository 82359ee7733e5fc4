"""A Trainer, watched: what happens during training is written down, and nothing else is changed.

The recorder's clock stands still while a split is evaluated or the norms are read, so that the times of methods can be
compared; what it writes becomes part of the run's record.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback

from glora.experiments.records.schema import EpochMetrics, NormSample, WrittenAnswer
from glora.experiments.training.measurement import TrainingClock
from glora.experiments.training.metrics import DivergedError
from glora.rank_log import RankLogCallback, rank_log

if TYPE_CHECKING:
    from glora.experiments.methods.adapted_model import AdaptedModel
    from glora.experiments.training.progress import RunProgress

NORM_SAMPLES = 50
"""Norms are read so many times over the warm-up: enough for a curve, and each reading waits for the device."""


class RunRecorder(TrainerCallback):
    """Writes down what happens during training: losses, metrics, step times, averaged norms."""

    def __init__(self, adaptation: AdaptedModel, primary_split: str, progress: RunProgress) -> None:
        self.clock = TrainingClock()
        self.metrics: list[EpochMetrics] = []
        self.norms: list[NormSample] = []
        self.final: dict[str, float] = {}
        self.answers: list[WrittenAnswer] = []
        self.steps = 0
        self.train_seconds: float | None = None
        self._adaptation = adaptation
        self._primary_split = primary_split
        self._progress = progress
        self._sample_every = 1
        self._losses: list[tuple[float, int]] = []
        self._logged_at = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, at what the method has taken already."""
        self._sample_every = max(1, math.ceil(self._adaptation.warmup_steps / NORM_SAMPLES))
        self.clock.start(already=self._adaptation.preparation_seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        self.train_seconds = self.clock.seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the step's time, then read the norms with the clock stopped."""
        self.clock.step()
        self.steps = state.global_step
        with self.clock.paused():
            self._sample_norms()
            self._progress.step()

    def _sample_norms(self) -> None:
        warmup = self._adaptation.warmup_steps
        if self.steps > warmup or (self.steps % self._sample_every and self.steps not in (1, warmup)):
            return
        norms = self._adaptation.averaged_norms()
        if norms is not None:
            self.norms.append(NormSample(step=self.steps, values=norms))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Have the loss logged up to the evaluation that follows, however often it is logged in between."""
        control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the mean loss since the log before; stop at once if it is no longer a number.

        Raises:
            DivergedError: the loss is NaN or infinite.
        """
        if logs and "loss" in logs:
            loss = float(logs["loss"])
            if self.metrics and self.metrics[-1].step >= self._logged_at:
                self._losses.clear()  # they were of the evaluation before
            self._losses.append((loss, state.global_step - self._logged_at))
            self._logged_at = state.global_step
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the training loss is {loss} by step {state.global_step}: training has diverged",
                    advice=f"Lower the learning rate ({args.learning_rate:g}) or lengthen its warm-up",
                )

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch has been evaluated."""
        self._progress.evaluation_batch()

    def evaluation_begins(self, split: str, batches: int) -> None:
        """Tell the user."""
        self._progress.evaluation_begins(split, batches)

    def answers_written(self, split: str, answers: list[WrittenAnswer]) -> None:
        """Keep some of the answers that were written for the main split, those of the last evaluation."""
        if split == self._primary_split:
            self.answers = answers

    def evaluation_ends(self, split: str, epoch: float, values: dict[str, float], loss: float | None = None) -> None:
        """Keep a split's metrics, and its loss where that is none; those of the last evaluation are the run's result."""
        evaluated = EpochMetrics(
            epoch=epoch,
            step=self.steps,
            split=split,
            train_seconds=self.clock.seconds,
            train_loss=self._mean_loss(),
            loss=loss,
            values=values,
        )
        self.metrics.append(evaluated)
        prefix = "" if split == self._primary_split else f"{split}/"
        self.final |= {f"{prefix}{name}": value for name, value in values.items()}
        self._progress.evaluated(evaluated)

    def _mean_loss(self) -> float | None:
        """Since the evaluation before; None if nothing was trained."""
        steps = sum(steps for _, steps in self._losses)
        return sum(loss * steps for loss, steps in self._losses) / steps if steps else None


class Timed(Trainer):
    """What any Trainer of transformers or TRL inherits from first, to tell the recorder when a split is evaluated."""

    not_metrics: frozenset[str] = frozenset({"loss", "runtime", "samples_per_second", "steps_per_second", "epoch"})
    """What an evaluation returns beside the task's metrics."""

    def __init__(self, *args: Any, recorder: RunRecorder, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recorder = recorder
        self.add_callback(recorder)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the clock stopped: whoever reports the runs somewhere does not make them slower."""
        with self._recorder.clock.paused():
            super().log(logs, *args, **kwargs)

    def evaluation_batches(self, split: str) -> int:
        """How many batches it takes to evaluate a split."""
        return len(self.get_eval_dataloader(split))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate with the clock stopped. Trainer calls itself once for each split, by name."""
        with self._recorder.clock.paused():
            if not isinstance(eval_dataset, str):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            self._recorder.evaluation_begins(eval_dataset, self.evaluation_batches(eval_dataset))
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            values = {name.removeprefix(f"{metric_key_prefix}_"): value for name, value in metrics.items()}
            self._recorder.evaluation_ends(
                eval_dataset,
                float(self.state.epoch or 0.0),
                {name: float(value) for name, value in values.items() if name not in self.not_metrics},
                loss=float(values["loss"]) if "loss" in self.not_metrics and "loss" in values else None,
            )
            return metrics


class TimedTrainer(Timed):
    """`transformers.Trainer`, telling the recorder when a split is evaluated."""


class AdaptedModelLog(RankLogCallback):
    """Tells the reporters what any method knows of its ranks and norms."""

    def __init__(self, trainer: Trainer, adaptation: AdaptedModel) -> None:
        super().__init__(trainer)
        self._adaptation = adaptation

    def check(self) -> None:
        """Every method can be watched."""

    def values(self) -> dict[str, float]:
        """Ranks, and norms during the warm-up."""
        adaptation, step = self._adaptation, self._trainer.state.global_step
        norms = adaptation.averaged_norms() if step <= adaptation.warmup_steps else None
        return rank_log(adaptation.ranks(), adaptation.adapter_parameters(), norms or {})


def warm_up_kernels(trainer: Trainer) -> None:
    """Go through one batch forward and backward and forget it: no random number is used up, no gradient stays.

    What a process does for the first time (choosing kernels, loading libraries) would otherwise count as the training
    time of whichever method comes first: 0.4 s with a small encoder on a CPU, more on a GPU.
    """
    dataset, model = trainer.train_dataset, trainer.model
    rows = [dataset[i] for i in range(min(len(dataset), trainer.args.per_device_train_batch_size))]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), trainer.accelerator.autocast():
        inputs = {name: tensor.to(trainer.args.device) for name, tensor in trainer.data_collator(rows).items()}
        model.train()
        trainer.compute_loss(model, inputs).backward()
    model.zero_grad()
