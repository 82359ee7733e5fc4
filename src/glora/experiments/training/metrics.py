"""GLUE's metrics, by scikit-learn and scipy: fractions or coefficients, not percent.

Where a metric is not defined, because a model answers the same to everything, it is 0: no better than chance. scikit-learn does
this for Matthews correlation and F1; scipy's correlations are NaN there, which would turn a mean over seeds into NaN. NaN or
infinite predictions are not a result but a failure.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from glora.experiments.data.task import REGRESSION_METRICS, TaskData


class DivergedError(ArithmeticError):
    """The training loss or the predictions are NaN or infinite.

    Attributes:
        kind: as in `RunRecord`.
        advice: what may prevent it.
    """

    kind = "diverged"

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


def _correlation(function: Callable[..., Any], labels: ArrayLike, predicted: ArrayLike) -> float:
    if np.size(labels) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input, and returns NaN
        return float(np.nan_to_num(function(labels, predicted)[0]))


METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {
    "accuracy": accuracy_score,
    "matthews_correlation": matthews_corrcoef,  # for more than two classes the R_K statistic (Gorodkin, 2004)
    "f1": functools.partial(f1_score, zero_division=0.0),  # of class 1, as GLUE has it for MRPC and QQP
    "pearson": functools.partial(_correlation, pearsonr),
    "spearman": functools.partial(_correlation, spearmanr),
}
"""Name -> function of labels and predictions."""


def compute(metrics: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Compute metrics from a model's output.

    Args:
        metrics: names of `METRICS`, either for classes or for numbers.
        predictions: logits (examples, classes); for numbers (examples,) or (examples, 1).
        labels: class numbers or values (examples,).

    Returns:
        Name -> value, in the order of `metrics`.

    Raises:
        DivergedError: predictions are NaN or infinite.
    """
    output, truth = np.asarray(predictions), np.asarray(labels)
    if broken := int((~np.isfinite(output)).reshape(len(output), -1).any(axis=1).sum()):
        raise DivergedError(
            f"{broken} of {len(output)} predictions {'is' if broken == 1 else 'are'} NaN or infinite: training has diverged",
            advice="Lower the learning rate, or train in float32",
        )
    predicted = output.reshape(-1) if set(metrics) & set(REGRESSION_METRICS) else output.argmax(axis=1)
    return {name: float(METRICS[name](truth, predicted)) for name in metrics}


def majority_class(task: TaskData) -> dict[str, float]:
    """Return the metrics of always answering the most frequent class of the training examples; empty without classes.

    Returns:
        Name -> value; those of a secondary split as `validation_mismatched/accuracy`.
    """
    if task.label_names is None:
        return {}
    majority = Counter(task.train["label"]).most_common(1)[0][0]
    found: dict[str, float] = {}
    for number, (split, examples) in enumerate(task.evaluation.items()):
        always = np.eye(task.num_labels)[np.full(len(examples), majority)]
        values = compute(task.metrics, always, examples["label"])
        found |= {f"{split}/{name}" if number else name: value for name, value in values.items()}
    return found
