"""The score of an adapter on a task's evaluation split, and the smallest adapter that loses no more than is allowed."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from peft import PeftModel
from transformers import PrinterCallback

from glora.compress import CompressibleAdapter, Compression
from glora.experiments.compression.view import Cut, or_none
from glora.experiments.config import RunConfig
from glora.experiments.data.loading import load_task
from glora.experiments.data.metric import Metric, metric_of
from glora.experiments.data.task import TaskData
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.training.progress import RunProgress
from glora.experiments.training.task_kinds import find_kind
from glora.experiments.training.timed_trainer import RunRecorder
from glora.messages import pluralize

PERCENT = 100


class _Loaded(AdaptedModel):
    """A model with an adapter of any kind, only to be evaluated."""

    def __init__(self, model: PeftModel) -> None:
        self.model, self.callbacks = model, ()


class TaskEvaluation:
    """Evaluate adapters of one base model on one task.

    Args:
        config: Model, task, data_dir and what evaluation depends on: batch size, max_length, eval_limit.
        task: The loaded task. Default: that of the configuration.

    Attributes:
        metric: The metric that judges the task.
        examples: Size of the split that is reported.
    """

    def __init__(self, config: RunConfig, task: TaskData | None = None) -> None:
        self._config = config
        self._task = task or load_task(
            config.task,
            data_dir=config.data_dir,
            train_limit=1,
            eval_limit=config.eval_limit,
            write_answers=config.writes_answers,
        )
        self._kind = find_kind(self._task.kind)
        self._model, self._tokenizer = self._kind.load_model(config, self._task)
        self._tokens = self._kind.tokenize(config, self._task, self._model, self._tokenizer)
        self._split = next(iter(self._task.evaluation))
        self.metric = metric_of(self._task.primary_metric)
        self.examples = len(self._task.evaluation[self._split])

    def score(self, adapter: str | Path) -> float:
        """Return the metric of an adapter, by its folder or its id on the hub."""
        return self.measure(adapter)[self.metric.name]

    def measure(self, adapter: str | Path) -> dict[str, float]:
        """Return the task's metrics on the split that is reported, and the loss there.

        Raises:
            ValueError: the adapter was trained on another model, or for another number of classes.
        """
        try:
            model = PeftModel.from_pretrained(self._model, str(adapter))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            fits = f"the model {self._config.model} with the task {self._config.task}"
            raise ValueError(f"{adapter} does not fit {fits}: {reason} Give its base model and task") from error
        recorder = RunRecorder(_Loaded(model), self._split, RunProgress())
        with tempfile.TemporaryDirectory(prefix="glora-") as folder:
            arguments = (_Loaded(model), self._tokens, self._tokenizer, self._task, recorder, Path(folder))
            trainer = self._kind.trainer(self._config, *arguments)
            trainer.remove_callback(PrinterCallback)
            trainer.evaluate()
        self._model = model.unload()
        found = next(each for each in recorder.metrics if each.split == self._split)
        values = {name: found.values[name] for name in self._task.metrics if name in found.values}
        return values if found.loss is None else {**values, "loss": found.loss}

    def score_of(self, adapter: CompressibleAdapter, made: Compression) -> float:
        """Return the metric of a cut that is not written yet."""
        with tempfile.TemporaryDirectory(prefix="glora-") as folder:
            adapter.write(made, Path(folder))
            return self.score(folder)

    def change(self, before: float, after: float) -> str:
        """Return the difference between two scores as text."""
        lost = points_lost(self.metric, before, after)
        return f"({abs(lost):.2f} points {'worse' if lost > 0 else 'better'})" if lost else "(the same)"

    def text(self, score: float) -> str:
        """Return a score as text."""
        return f"{self.metric.label} {self.metric.scale * score:.2f}{' %' if self.metric.unit == '%' else ''}"

    def basis(self, score: float) -> str:
        """Return the number of examples a score rests on, and what that allows to see."""
        basis = f"on {pluralize(self.examples, 'example')} of the {self._split} split"
        if self.metric.unit != "%":
            return basis
        error = PERCENT * math.sqrt(score * (1 - score) / self.examples)
        return f"{basis} (one example is {PERCENT / self.examples:.2f} points, the standard error {error:.1f})"


def points_lost(metric: Metric, before: float, after: float) -> float:
    """Return by how many points, in the unit of reports, a score is worse than the one before; negative if it is better.

    The last digits of floats are rounded away: 0.82 and 0.815 differ by 0.5 points.
    """
    sign = 1 if metric.higher_is_better else -1
    return round(sign * (before - after) * metric.scale, 9)


def smallest_within(tolerance: float, cut: Cut, loses: Callable[[Compression], float]) -> Compression:
    """Return the smallest adapter that loses no more than the tolerance, to 1 % of the parameters; all of it if none does.

    Where bounds make the largest cut smaller than the adapter, it has to be within the tolerance as well.

    Bisection takes the loss for monotone in the size, which holds only up to the noise of the evaluation split.

    Args:
        tolerance: Points that may be lost.
        cut: Share of the parameters -> ranks.
        loses: Ranks -> points lost.
    """
    low, high = 0, PERCENT
    best = cut(1.0)
    known: dict[tuple[int, ...], float] = {tuple(best.ranks_before.values()): 0.0}

    def lost_by(made: Compression) -> float:
        ranks = tuple(made.ranks.values())
        if ranks not in known:
            known[ranks] = loses(made)
        return known[ranks]

    if best.parameters < best.parameters_before and (lost := lost_by(best)) > tolerance:
        raise ValueError(
            f"the largest adapter within the bounds loses {lost:.2f} points, not {tolerance:g} at most; raise max_rank"
        )
    while high - low > 1:
        middle = (low + high) // 2
        made = or_none(cut, middle / PERCENT)
        if made is not None and lost_by(made) <= tolerance:
            high, best = middle, made
        else:
            low = middle
    return best
