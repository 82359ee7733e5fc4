"""Means, spreads and paired differences over seeds: the only statistics the report uses.

The spread is the sample standard deviation (divisor n - 1). Two methods are compared seed by seed, because
runs with one seed share the head's initialisation and the data order, and a difference within a seed varies
less than one between means. The interval is Student's t on the per-seed differences (or ratios), with n - 1
degrees of freedom; below three seeds there is none, since two differences say next to nothing about their own
spread (t = 12.7 at one degree of freedom). What share of one mean difference another one is, is a ratio of two
uncertain numbers; its interval is that of Fieller (1954, "Some problems in interval estimation", Journal of the
Royal Statistical Society B 16:175-185).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

SEEDS_FOR_AN_INTERVAL = 3
CONFIDENCE, POWER = 0.95, 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `sd` is the sample standard deviation, None with one seed."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of per-seed differences (method minus reference), with its interval from three seeds on.

    Attributes:
        mean: mean difference, in the unit of the values.
        low, high: ends of the 95 % interval; None below three seeds.
        seeds: the seeds that both methods have.
        values: the differences, in the order of `seeds`.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def direction(self) -> Literal["higher", "lower"] | None:
        """The side of zero that the whole interval is on; None where it has both sides, or where there is no interval."""
        if self.low is None or self.high is None or not (self.low > 0 or self.high < 0):
            return None
        return "higher" if self.low > 0 else "lower"

    @property
    def smallest(self) -> float | None:
        """The difference that this spread and number of seeds show with 80 % power; None below three seeds."""
        n, sd = len(self.values), estimate(self.values).sd
        if n < SEEDS_FOR_AN_INTERVAL or sd is None:
            return None
        return (_t_quantile(n) + float(stats.t.ppf(POWER, n - 1))) * sd / math.sqrt(n)

    @property
    def verdict(self) -> str:
        """The conclusion that the interval allows, in words."""
        if self.low is None:
            return "too few seeds"
        if math.isnan(self.mean):
            return "not comparable: a run's value is not a number"
        return self.direction or "no difference shown"


@dataclass(frozen=True)
class PairedRatio(Estimate):
    """Mean and spread of per-seed ratios, with the 95 % interval of the mean from three seeds on (else None)."""

    low: float | None
    high: float | None


@dataclass(frozen=True)
class RatioOfMeans:
    """One mean difference divided by another, over the same seeds.

    Attributes:
        value: the ratio of the two means; NaN where the lower one is zero.
        low, high: ends of Fieller's 95 % interval; None below three seeds, and where there is no bounded interval.
        seeds: the seeds that both differences have.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and sample standard deviation; NaN stays NaN, so that a diverged run cannot be overlooked."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)), n)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> PairedDifference | None:
    """`values` minus `reference`, seed by seed, over the seeds that both have; None if they share none."""
    seeds = tuple(sorted(values.keys() & reference.keys()))
    if not seeds:
        return None
    differences = tuple(values[seed] - reference[seed] for seed in seeds)
    mean = estimate(differences)
    return PairedDifference(mean.mean, *_interval(mean), seeds, differences)


def paired_ratio(values: Mapping[int, float], reference: Mapping[int, float]) -> PairedRatio | None:
    """Mean and spread of `values / reference`, by seed; None without a common seed or if one divides by 0."""
    seeds = sorted(values.keys() & reference.keys())
    if not seeds or any(reference[seed] == 0 for seed in seeds):
        return None
    mean = estimate([values[seed] / reference[seed] for seed in seeds])
    return PairedRatio(mean.mean, mean.sd, mean.n, *_interval(mean))


def ratio_of_means(numerator: PairedDifference, denominator: PairedDifference) -> RatioOfMeans | None:
    """mean(x) / mean(y) over the common seeds of x and y, with Fieller's 95 % interval.

    The interval holds every ratio p for which Student's t test of mean(x - p·y) = 0 is not rejected: the p with
    (ȳ² - q·v_y)·p² - 2·(x̄·ȳ - q·v_xy)·p + x̄² - q·v_x ≤ 0, where q is the squared quantile of t and v are the variances
    and the covariance of the means. It is bounded only where ȳ itself differs clearly from zero, ȳ² > q·v_y; elsewhere any
    ratio, however large, fits the data, and there is none.

    Returns:
        The ratio; None without a common seed.
    """
    x, y = dict(zip(numerator.seeds, numerator.values)), dict(zip(denominator.seeds, denominator.values))
    seeds = tuple(sorted(x.keys() & y.keys()))
    if not seeds:
        return None
    n = len(seeds)
    mean_x, mean_y = (estimate([values[seed] for seed in seeds]).mean for values in (x, y))
    value = mean_x / mean_y if mean_y else math.nan
    if n < SEEDS_FOR_AN_INTERVAL:
        return RatioOfMeans(value, None, None, seeds)
    (v_x, v_xy), (_, v_y) = np.cov([x[seed] for seed in seeds], [y[seed] for seed in seeds]) / n
    q = _t_quantile(n) ** 2
    a = mean_y**2 - q * v_y
    if not a > 0:  # NaN has no interval either
        return RatioOfMeans(value, None, None, seeds)
    b = mean_x * mean_y - q * v_xy
    c = mean_x**2 - q * v_x
    root = math.sqrt(max(0.0, b * b - a * c))
    return RatioOfMeans(value, (b - root) / a, (b + root) / a, seeds)


def _interval(mean: Estimate) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean; two None below three values."""
    if mean.sd is None or mean.n < SEEDS_FOR_AN_INTERVAL:
        return None, None
    half = _t_quantile(mean.n) * mean.sd / math.sqrt(mean.n)
    return mean.mean - half, mean.mean + half


def _t_quantile(n: int) -> float:
    """Quantile of Student's t with n - 1 degrees of freedom, for a two-sided 95 % interval."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
