"""Means, spreads and intervals against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from glora.experiments.report.statistics import (
    PairedDifference,
    RatioOfMeans,
    estimate,
    paired_difference,
    paired_ratio,
    ratio_of_means,
)

T_975 = {2: 0.95 / math.sqrt(2 * 0.975 * 0.025), 3: 3.182446305284263}
"""97.5 % quantiles of Student's t: for 2 degrees of freedom there is a closed form, for 3 it is from a table."""


def test_mean_and_sample_standard_deviation() -> None:
    found = estimate([80.0, 82.0, 84.0])
    assert (found.mean, found.n) == (82.0, 3)
    assert found.sd == pytest.approx(2.0)  # sqrt((4 + 0 + 4) / 2); with divisor n it would be 1.63


def test_one_value_has_no_spread() -> None:
    assert (estimate([5.0]).mean, estimate([5.0]).sd, estimate([5.0]).n) == (5.0, None, 1)


def test_paired_difference_and_its_interval() -> None:
    found = paired_difference({0: 81.0, 1: 84.0, 2: 87.0}, {0: 80.0, 1: 82.0, 2: 84.0})
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(2.0)  # differences 1, 2, 3: sd 1
    half = T_975[2] / math.sqrt(3)
    assert found.low == pytest.approx(2 - half)
    assert found.high == pytest.approx(2 + half)
    assert found.verdict == "no difference shown"


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    """Seeds differ by 10 points, methods by 1: only the pairing can see the 1."""
    reference = {0: 60.0, 1: 70.0, 2: 80.0, 3: 90.0}
    found = paired_difference({s: v + 1 + 0.1 * (-1) ** s for s, v in reference.items()}, reference)
    assert found is not None
    half = T_975[3] * math.sqrt(4 * 0.1**2 / 3) / 2
    assert found.low == pytest.approx(1 - half)
    assert found.verdict == "higher"


@pytest.mark.parametrize("seeds", [1, 2])
def test_below_three_seeds_nothing_is_concluded(seeds: int) -> None:
    found = paired_difference(dict.fromkeys(range(seeds), 90.0), dict.fromkeys(range(seeds), 10.0))
    assert found is not None
    assert (found.mean, found.low, found.high) == (80.0, None, None)
    assert (found.verdict, found.smallest) == ("too few seeds", None)


def test_only_common_seeds_are_paired() -> None:
    found = paired_difference({0: 2.0, 1: 3.0, 7: 100.0}, {0: 1.0, 1: 1.0, 8: -100.0})
    assert found is not None
    assert found.seeds == (0, 1)
    assert found.mean == 1.5
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_a_diverged_seed_has_no_verdict() -> None:
    found = paired_difference({0: 1.0, 1: math.nan, 2: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert found is not None
    assert found.verdict.startswith("not comparable")


def test_ratio_is_the_mean_of_ratios_not_the_ratio_of_means() -> None:
    found = paired_ratio({0: 110.0, 1: 260.0}, {0: 100.0, 1: 200.0})
    assert found is not None
    assert found.mean == pytest.approx(1.2)  # (1.1 + 1.3) / 2; the ratio of means would be 1.233
    assert found.sd == pytest.approx(math.sqrt(0.02))
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None
    assert paired_ratio({0: 1.0}, {0: 0.0}) is None


def test_a_ratio_has_an_interval_from_three_seeds_on() -> None:
    found = paired_ratio({0: 101.0, 1: 204.0, 2: 412.0}, {0: 100.0, 1: 200.0, 2: 400.0})
    assert found is not None
    half = T_975[2] * 0.01 / math.sqrt(3)  # ratios 1.01, 1.02, 1.03
    assert (found.mean, found.low, found.high) == pytest.approx((1.02, 1.02 - half, 1.02 + half))
    two = paired_ratio({0: 101.0, 1: 204.0}, {0: 100.0, 1: 200.0})
    assert two is not None
    assert (two.low, two.high) == (None, None)


def ratio(x: dict[int, float], y: dict[int, float]) -> RatioOfMeans:
    found = ratio_of_means(*(paired_difference(values, dict.fromkeys(values, 0.0)) for values in (x, y)))
    assert found is not None
    return found


def test_fiellers_interval_ends_where_students_test_would() -> None:
    """By the definition: at each end p, the 95 % interval of mean(x - p·y) just touches zero."""
    x, y = {0: 3.0, 1: 4.5, 2: 3.5, 3: 4.0}, {0: 5.0, 1: 6.5, 2: 5.0, 3: 5.5}
    found = ratio(x, y)
    assert found.value == pytest.approx(15 / 22)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high

    def touches(p: float) -> PairedDifference:
        difference = paired_difference(x, {seed: p * value for seed, value in y.items()})
        assert difference is not None
        return difference

    assert touches(found.low).low == pytest.approx(0, abs=1e-12)
    assert touches(found.high).high == pytest.approx(0, abs=1e-12)


def test_a_denominator_near_zero_bounds_no_ratio() -> None:
    found = ratio({0: 1.0, 1: 1.1, 2: 0.9}, {0: 1.0, 1: -1.0, 2: 0.5})
    assert found.value == pytest.approx(6)
    assert (found.low, found.high) == (None, None)
    assert math.isnan(ratio({0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 1: -1.0, 2: 0.0}).value)
    assert ratio({0: 1.0, 1: math.nan, 2: 1.0}, {0: 1.0, 1: 1.0, 2: 1.1}).seeds == (0, 1, 2)
    diverged = ratio({0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 1: math.nan, 2: 1.1})
    assert (diverged.low, diverged.high) == (None, None)


def test_a_ratio_of_means_needs_common_seeds() -> None:
    assert ratio({0: 1.0, 1: 2.0}, {0: 2.0, 1: 2.0}).low is None
    one, other = (paired_difference({seed: 1.0}, {seed: 0.0}) for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert ratio_of_means(one, other) is None
