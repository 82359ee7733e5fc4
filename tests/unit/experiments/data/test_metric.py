"""Metrics: how each is shown, and whether more of it is better."""

from __future__ import annotations

import pytest

from glora.experiments.data.metric import metric_of


@pytest.mark.parametrize(
    ("name", "header", "shown"),
    [
        ("accuracy", "Accuracy (%)", "81.3"),
        ("matthews_correlation", "Matthews corr. (×100)", "81.3"),
        ("f1", "F1 (%)", "81.3"),
        ("pearson", "Pearson corr. (×100)", "81.3"),
        ("exact_match", "Exact match (%)", "81.3"),
        ("loss", "Loss", "0.8131"),
        ("custom_score", "Custom score", "0.8131"),
    ],
)
def test_metrics_in_the_unit_of_the_field(name: str, header: str, shown: str) -> None:
    metric = metric_of(name)
    assert (metric.key, metric.header, metric.write(0.81312)) == (name, header, shown)


def test_a_secondary_split_is_named() -> None:
    metric = metric_of("loss", "validation_mismatched")
    assert (metric.key, metric.header) == ("validation_mismatched/loss", "Loss (validation mismatched)")
    assert not metric.higher_is_better
