"""Metrics as GLUE defines them, by scikit-learn and scipy. All are fractions or coefficients, none a percentage.

Where a metric is not defined, because a model answers the same to everything, it is 0: no better than chance.
scikit-learn does so for Matthews correlation and F1; for the two correlations, where scipy gives NaN, it is
done here, so that a collapsed run shows as 0 in a table and does not turn the mean over seeds into NaN.
Predictions that are NaN or infinite are not collapsed but broken, and are refused.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from glora.messages import pluralize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


class DivergedError(ArithmeticError):
    """The training loss or the predictions are NaN or infinite.

    Attributes:
        advice: what may prevent it.
    """

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


def _accuracy(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def _matthews_correlation(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Multi-class too: the R_K statistic (Gorodkin, 2004)."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _f1(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Of class 1, as GLUE has it for MRPC (equivalent) and QQP (duplicate)."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0.0))


def _pearson(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predicted)


def _spearman(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predicted)


def _correlation(function: Callable[..., Any], labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    import numpy as np

    if len(labels) < 2:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant input, and gives NaN
        value = float(function(labels, predicted)[0])
    return value if np.isfinite(value) else 0.0


CLASSIFICATION: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "accuracy": _accuracy,
    "matthews_correlation": _matthews_correlation,
    "f1": _f1,
}
REGRESSION: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "pearson": _pearson,
    "spearman": _spearman,
}

LOWER_IS_BETTER = ("loss", "perplexity")
"""Metrics by the ends of their names; of every other one, more is better."""


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of a recorded metric is a better one, on whichever split: False for a loss."""
    return not metric.endswith(LOWER_IS_BETTER)


def compute(metrics: Sequence[str], predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Compute metrics from a model's output.

    Args:
        metrics: names: accuracy, matthews_correlation, f1 (classification); pearson, spearman (regression).
        predictions: logits (examples, classes), or in regression values (examples,) or (examples, 1).
        labels: class numbers or values (examples,).

    Returns:
        Name -> value, in the order of `metrics`.

    Raises:
        ValueError: an unknown metric, metrics of both kinds, shapes that do not fit, or no example.
        DivergedError: predictions that are NaN or infinite.
    """
    import numpy as np

    known = {**CLASSIFICATION, **REGRESSION}
    for name in metrics:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise ValueError(f"unknown metric {name!r}.{hint} Metrics: {', '.join(known)}.")
    regression = any(name in REGRESSION for name in metrics)
    if regression and any(name in CLASSIFICATION for name in metrics):
        raise ValueError(f"{', '.join(metrics)}: classes and numbers cannot be scored together.")
    output, truth = np.asarray(predictions), np.asarray(labels)
    if not len(truth):
        raise ValueError("there is no example to compute metrics of.")
    predicted = _values(output, truth) if regression else _classes(output, truth)
    return {name: known[name](truth, predicted) for name in metrics}


def _classes(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.integer[Any]]:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"predictions of shape {logits.shape} are no logits (examples, classes) for {pluralize(len(labels), 'label')}."
        )
    _refuse_broken(logits)
    return logits.argmax(axis=1)


def _values(output: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.floating[Any]]:
    if output.size != len(labels):
        raise ValueError(
            f"predictions of shape {output.shape} do not fit {pluralize(len(labels), 'label')}, one value each."
        )
    _refuse_broken(output)
    return output.reshape(-1)


def _refuse_broken(output: NDArray[Any]) -> None:
    import numpy as np

    broken = int((~np.isfinite(output)).reshape(len(output), -1).any(axis=1).sum())
    if broken:
        raise DivergedError(
            f"{broken} of {len(output)} predictions {'is' if broken == 1 else 'are'} NaN or infinite: training has diverged",
            advice="Lower the learning rate, or train in float32",
        )
