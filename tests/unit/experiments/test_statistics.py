"""Means, spreads and intervals against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from glora.experiments.statistics import estimate, paired_difference, paired_ratio

T_975 = {2: 0.95 / math.sqrt(2 * 0.975 * 0.025), 3: 3.182446305284263}
"""97.5 % quantiles of Student's t: for 2 degrees of freedom there is a closed form, for 3 it is from a table."""


def test_mean_and_sample_standard_deviation() -> None:
    found = estimate([80.0, 82.0, 84.0])
    assert (found.mean, found.n) == (82.0, 3)
    assert found.sd == pytest.approx(2.0)  # sqrt((4 + 0 + 4) / 2); with divisor n it would be 1.63


def test_one_value_has_no_spread() -> None:
    assert (estimate([5.0]).mean, estimate([5.0]).sd, estimate([5.0]).n) == (5.0, None, 1)


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        estimate([])


def test_nan_is_not_swept_away() -> None:
    found = estimate([1.0, math.nan])
    assert math.isnan(found.mean)


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


def test_the_sign_is_method_minus_reference() -> None:
    found = paired_difference({0: 1.0, 1: 1.1, 2: 0.9}, {0: 5.0, 1: 5.0, 2: 5.0})
    assert found is not None
    assert found.mean == pytest.approx(-4.0)
    assert found.verdict == "lower"


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 seed"), (2, "2 seeds")])
def test_below_three_seeds_nothing_is_concluded(seeds: int, words: str) -> None:
    found = paired_difference(dict.fromkeys(range(seeds), 90.0), dict.fromkeys(range(seeds), 10.0))
    assert found is not None
    assert (found.mean, found.low, found.high) == (80.0, None, None)
    assert found.verdict == f"nothing can be concluded from {words}"


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
