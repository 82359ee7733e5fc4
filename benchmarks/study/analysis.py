"""Differences of records: paired by seed, corrected for the number of comparisons, with the effect that could be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from benchmarks.study.design import COMPARISONS, TASKS, TUNING_SEED
from benchmarks.study.records import Records, best_rate, record_of
from benchmarks.study.training import decode
from scipy import stats

from glora.experiments.report.statistics import CONFIDENCE, PairedDifference, paired_difference

BySeed = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """One arm against another on a task at a size.

    Attributes:
        task, size, arm, other: What is compared; r̄ is the size.
        log_loss: Differences of the logarithm of the held-out loss.
        score: Differences of accuracy or reciprocal rank; None where a task has neither.
        p: Two-sided p of log_loss by Student's t; None below three seeds, or where all differences are equal.
        by_examples: 95 % interval of the relative difference over the held-out examples, averaged over seeds.
    """

    task: str
    size: float
    arm: str
    other: str
    log_loss: PairedDifference
    score: PairedDifference | None
    p: float | None
    by_examples: tuple[float, float]


def by_seed(records: Records, task: str, arm: str, size: float, *, rate_of: str | None = None) -> BySeed:
    """Return an arm's records by seed, at its own learning rate or that of another arm; without the tuning seed's."""
    rate = best_rate(records, task, rate_of or arm, size)
    if rate is None:
        return {}
    found = {seed: record_of(records, task, arm, size, rate, seed) for seed in TASKS[task].seeds if seed != TUNING_SEED}
    return {seed: record for seed, record in found.items() if record is not None}


def compare(task: str, size: float, arm: str, other: str, mine: BySeed, theirs: BySeed) -> Comparison | None:
    """Compare two arms over the seeds that both have; None if they share none."""
    log_loss = paired_difference(*({seed: math.log(r["loss"]) for seed, r in runs.items()} for runs in (mine, theirs)))
    if log_loss is None:
        return None
    scored = all(record["score"] is not None for record in mine.values())
    score = (
        paired_difference(*({seed: r["score"] for seed, r in runs.items()} for runs in (mine, theirs)))
        if scored
        else None
    )
    p = float(stats.ttest_1samp(log_loss.values, 0).pvalue) if log_loss.smallest else None
    return Comparison(task, size, arm, other, log_loss, score, p, _by_examples(mine, theirs, log_loss.seeds))


def _by_examples(mine: BySeed, theirs: BySeed, seeds: Sequence[int]) -> tuple[float, float]:
    """Relative to the other arm's mean loss; each example counts with its mean over the seeds."""
    a, b = (np.mean([decode(runs[seed]["losses"]) for seed in seeds], axis=0) for runs in (mine, theirs))
    difference = a - b
    middle, error = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * error
    return float((middle - reach) / b.mean()), float((middle + reach) / b.mean())


def family(task: str, records: Records) -> list[Comparison]:
    """The prespecified comparisons of a task that have records."""
    found = []
    for arm, other, sizes in COMPARISONS:
        for size in sizes:
            if arm in TASKS[task].arms and other in TASKS[task].arms and size in TASKS[task].sizes:
                runs = (by_seed(records, task, each, size) for each in (arm, other))
                found.append(compare(task, size, arm, other, *runs))
    return [each for each in found if each is not None]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for their number: Holm (1979), Scandinavian Journal of Statistics 6:65-70."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    worst = 0.0
    for done, (p, place) in enumerate(order):
        worst = max(worst, min(1.0, p * (len(order) - done)))
        adjusted[place] = worst
    return adjusted


@dataclass(frozen=True)
class Pooled:
    """A comparison over tasks: the mean of their means, with a 95 % interval by Welch and Satterthwaite."""

    mean: float
    low: float
    high: float
    tasks: tuple[str, ...]


def pool(comparisons: Sequence[Comparison]) -> Pooled | None:
    """Combine the same comparison on several tasks; None below two tasks with a spread."""
    usable = [each for each in comparisons if each.p is not None]
    if len(usable) < 2:
        return None
    variances = [np.var(each.log_loss.values, ddof=1) / len(each.log_loss.values) for each in usable]
    total = sum(variances)
    freedom = total**2 / sum(v**2 / (len(each.log_loss.values) - 1) for v, each in zip(variances, usable))
    k = len(usable)
    mean = sum(each.log_loss.mean for each in usable) / k
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * math.sqrt(total) / k
    return Pooled(mean, mean - reach, mean + reach, tuple(each.task for each in usable))
