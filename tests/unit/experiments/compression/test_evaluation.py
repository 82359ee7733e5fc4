"""The search for the smallest adapter: as many evaluations as bisection needs, and the whole adapter where none passes."""

from __future__ import annotations

import pytest

from glora.compress import Compression
from glora.experiments.compression.evaluation import points_lost, smallest_within
from glora.experiments.data.metric import metric_of


def cut(share: float) -> Compression:
    parameters = round(1000 * share)
    if parameters < 50:
        raise ValueError("pays for no direction")
    return Compression({"a": 1000}, {"a": parameters}, 0.5, 1000, parameters)


@pytest.mark.parametrize("needed", [50, 130, 500, 990, 1000])
def test_the_smallest_that_passes(needed: int) -> None:
    """A point is lost for every 10 parameters below what is needed."""
    evaluated: list[int] = []

    def loses(made: Compression) -> float:
        evaluated.append(made.parameters)
        return max(0.0, (needed - made.parameters) / 10)

    assert smallest_within(0.5, cut, loses).parameters == needed
    assert len(evaluated) <= 7
    assert len(set(evaluated)) == len(evaluated)


@pytest.mark.parametrize(
    ("metric", "before", "after", "points"),
    [("accuracy", 0.82, 0.815, 0.5), ("matthews_correlation", 0.5, 0.6, -10), ("loss", 1.5, 1.7, 0.2)],
)
def test_points_are_lost_where_the_score_is_worse(metric: str, before: float, after: float, points: float) -> None:
    assert points_lost(metric_of(metric), before, after) == points


def test_sizes_with_the_same_ranks_are_evaluated_once() -> None:
    evaluated: list[Compression] = []

    def one_size(share: float) -> Compression:
        return Compression({"a": 10}, {"a": 1}, 0.5, 1000, 100) if share < 1 else cut(1.0)

    smallest_within(0.5, one_size, lambda made: evaluated.append(made) or 0.0)
    assert len(evaluated) == 1


def test_a_smaller_tolerance_keeps_more() -> None:
    sizes = [smallest_within(t, cut, lambda made: 100 - made.parameters / 10).parameters for t in (0, 10, 50)]
    assert sizes == [1000, 900, 500]


def test_bounds_whose_largest_adapter_loses_too_much() -> None:
    with pytest.raises(ValueError, match="raise max_rank"):
        smallest_within(
            0.5, lambda share: Compression({"a": 10}, {"a": 1}, 0.5, 1000, round(300 * share)), lambda _: 50.0
        )
