"""Means, spreads and paired differences over seeds: the only statistics the report uses.

The spread is the sample standard deviation (divisor n - 1). Two methods are compared seed by seed, because
runs with one seed share the head's initialisation and the data order, and a difference within a seed varies
less than one between means. The interval is Student's t on the per-seed differences, with n - 1 degrees of
freedom; below three seeds there is none, since two differences say next to nothing about their own spread (t
= 12.7 at one degree of freedom).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SEEDS_FOR_AN_INTERVAL = 3
CONFIDENCE = 0.95


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
        low: lower end of the 95 % interval; None below three seeds.
        high: upper end of the 95 % interval; None below three seeds.
        seeds: the seeds that both methods have.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]

    @property
    def verdict(self) -> str:
        """What the interval allows to be said, in words."""
        if self.low is None or self.high is None:
            seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
            return f"nothing can be concluded from {seeds}"
        if math.isnan(self.mean):
            return "not comparable: a run's value is not a number"
        if self.low > 0:
            return "higher"
        if self.high < 0:
            return "lower"
        return "no difference shown"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and sample standard deviation; NaN stays NaN, so that a diverged run cannot be overlooked.

    Raises:
        ValueError: if there is no value.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)), n)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> PairedDifference | None:
    """`values` minus `reference`, seed by seed, over the seeds that both have; None if they share none."""
    seeds = tuple(sorted(values.keys() & reference.keys()))
    if not seeds:
        return None
    difference = estimate([values[seed] - reference[seed] for seed in seeds])
    if difference.sd is None or difference.n < SEEDS_FOR_AN_INTERVAL:
        return PairedDifference(difference.mean, None, None, seeds)
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, difference.n - 1)) * difference.sd / math.sqrt(difference.n)
    return PairedDifference(difference.mean, difference.mean - half, difference.mean + half, seeds)


def paired_ratio(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Mean and spread of `values / reference`, by seed; None without a common seed or if one divides by 0."""
    seeds = sorted(values.keys() & reference.keys())
    if not seeds or any(reference[seed] == 0 for seed in seeds):
        return None
    return estimate([values[seed] / reference[seed] for seed in seeds])
