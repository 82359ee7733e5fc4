"""Metrics against values worked out by hand, and what happens where they are not defined."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from glora.experiments.data.registry import TASKS
from glora.experiments.training.metrics import METRICS, DivergedError, compute


def logits_of(classes: list[int], count: int) -> np.ndarray:
    """Logits whose largest entry is the class; negative, so that an argmax over the wrong axis shows."""
    logits = np.full((len(classes), count), -7.0)
    logits[np.arange(len(classes)), classes] = -1.0
    return logits


def test_binary_by_hand() -> None:
    labels = [1] * 6 + [0] * 4
    predicted = [1] * 4 + [0] * 2 + [0] * 3 + [1]  # 4 true and 1 false positive, 3 true and 2 false negatives
    values = compute(("accuracy", "f1", "matthews_correlation"), logits_of(predicted, 2), labels)
    assert list(values) == ["accuracy", "f1", "matthews_correlation"]
    assert values["accuracy"] == pytest.approx(0.7)
    assert values["f1"] == pytest.approx(2 * 4 / (2 * 4 + 1 + 2))  # of class 1; of class 0 it would be 6/9
    assert values["matthews_correlation"] == pytest.approx((4 * 3 - 1 * 2) / math.sqrt(5 * 6 * 4 * 5))


def test_matthews_correlation_of_three_classes_is_the_r_k_statistic() -> None:
    labels, predicted = [0, 0, 0, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 2, 2, 2, 0, 2]
    s, c = 9, 6
    t, p = (3, 2, 4), (3, 2, 4)
    overlap = sum(a * b for a, b in zip(t, p, strict=True))
    expected = (c * s - overlap) / math.sqrt((s * s - sum(a * a for a in p)) * (s * s - sum(a * a for a in t)))
    values = compute(("matthews_correlation",), logits_of(predicted, 3), labels)
    assert values["matthews_correlation"] == pytest.approx(expected)


def test_regression_by_hand() -> None:
    values = compute(("pearson", "spearman"), np.array([[1.0], [2.0], [4.0]]), [1.0, 2.0, 3.0])
    assert values["pearson"] == pytest.approx(3 / math.sqrt(2 * 42 / 9))
    assert values["spearman"] == pytest.approx(1.0)
    assert compute(("spearman",), [3.0, 1.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0])["spearman"] == pytest.approx(
        -4.5 / math.sqrt(5 * 4.5)  # ranks 4, 2.5, 2.5, 1 against 1, 2, 3, 4
    )


def test_the_same_answer_to_everything_scores_zero_and_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = compute(("accuracy", "matthews_correlation", "f1"), logits_of([0, 0, 0, 0], 2), [0, 1, 0, 1])
        assert constant == {"accuracy": 0.5, "matthews_correlation": 0.0, "f1": 0.0}
        assert compute(("pearson", "spearman"), [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
        assert compute(("pearson",), [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == {"pearson": 0.0}
        assert compute(("pearson",), [2.0], [1.0]) == {"pearson": 0.0}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_diverged_predictions_are_refused(broken: float) -> None:
    with pytest.raises(DivergedError, match="1 of 2 predictions"):
        compute(("accuracy",), [[0.0, broken], [1.0, 0.0]], [0, 0])
    with pytest.raises(DivergedError, match="1 of 2 predictions"):
        compute(("pearson",), [0.0, broken], [0.0, 1.0])


def test_every_task_of_labels_is_scored_by_known_metrics_and_classes_by_accuracy_and_matthews() -> None:
    for task in TASKS.values():
        if task.kind == "classification":
            assert {task.primary_metric} <= set(task.metrics) <= set(METRICS)
            assert task.label_names is None or {"accuracy", "matthews_correlation"} <= set(task.metrics)
