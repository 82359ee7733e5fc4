"""The search for the smallest adapter: as many evaluations as bisection needs, and the whole adapter where none passes."""

from __future__ import annotations

import pytest

from glora.compress import Compression
from glora.experiments.compression.evaluation import smallest_within


def cut(share: float) -> Compression:
    parameters = round(1000 * share)
    if parameters < 50:
        raise ValueError("pays for no direction")
    return Compression({"a": 10}, {"a": 1}, 0.5, 1000, parameters)


@pytest.mark.parametrize("needed", [50, 130, 500, 990, 1000])
def test_the_smallest_that_passes(needed: int) -> None:
    """Scores fall by a point for every 10 parameters below what is needed."""
    evaluated: list[int] = []

    def score(made: Compression) -> float:
        evaluated.append(made.parameters)
        return min(90.0, 90 - (needed - made.parameters) / 10)

    found = smallest_within(0.5, cut, score, lambda score: 90 - score)
    assert found.made.parameters == needed
    assert found.score == 90
    assert len(evaluated) <= 8
    assert len(set(evaluated)) == len(evaluated)


def test_a_smaller_tolerance_keeps_more() -> None:
    sizes = [
        smallest_within(tolerance, cut, lambda made: made.parameters / 10, lambda score: 100 - score).made.parameters
        for tolerance in (0, 10, 50)
    ]
    assert sizes == [1000, 900, 500]
