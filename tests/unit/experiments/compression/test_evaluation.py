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
    """A point is lost for every 10 parameters below what is needed."""
    evaluated: list[int] = []

    def loses(made: Compression) -> float:
        evaluated.append(made.parameters)
        return max(0.0, (needed - made.parameters) / 10)

    assert smallest_within(0.5, cut, loses).parameters == needed
    assert len(evaluated) <= 7
    assert len(set(evaluated)) == len(evaluated)


def test_a_smaller_tolerance_keeps_more() -> None:
    sizes = [smallest_within(t, cut, lambda made: 100 - made.parameters / 10).parameters for t in (0, 10, 50)]
    assert sizes == [1000, 900, 500]
