"""Statistics of a cell over its seeds: paired differences to uniform LoRA, and the share of the gap that is closed.

Losses differ between seeds by more than between variants, so they are compared seed by seed and as ratios: with ℓ = log loss,
the difference of a variant is the mean over seeds of ℓ_variant − ℓ_uniform, with Student's t on n − 1 degrees of freedom. The
gap is the same for the ranks as planted, and the share that a variant closes is the ratio of the two means. Its interval is
Fieller's (1954), which takes into account that the gap is estimated from the same seeds; there is no share where the gap is
not clearly different from zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from glora.experiments.report.statistics import (
    SEEDS_FOR_AN_INTERVAL,
    PairedDifference,
    paired_difference,
    ratio_of_means,
)

REFERENCE, TRUTH, ESTIMATED = "uniform", "planted", "estimate"


@dataclasses.dataclass(frozen=True)
class Share:
    """The share of the gap that is closed, with its 95 % interval where there is one."""

    mean: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of one cell.

    Attributes:
        variant: Its name.
        loss: Geometric mean over its seeds.
        difference: Paired difference of log losses to uniform LoRA; None for uniform itself.
        to_estimated: The same to ranks by the estimated norm; None for these and for uniform.
        share: Of the gap between uniform and planted.
        correlation: Spearman's, between the ranks and the planted ones; mean over seeds, None where all ranks are equal.
        parameters: Mean ratio of the adapter's parameters to uniform's.
        seeds: How many.
    """

    variant: str
    loss: float
    difference: PairedDifference | None
    to_estimated: PairedDifference | None
    share: Share | None
    correlation: float | None
    parameters: float
    seeds: int


def compare(records: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[Row]:
    """The rows of one cell, from its records by variant and seed."""
    logs = {v: {seed: math.log(r["loss"]) for seed, r in of.items()} for v, of in records.items()}
    reference, truth = logs.get(REFERENCE, {}), logs.get(TRUTH, {})
    rows = []
    for variant, of in records.items():
        common = sorted(of.keys() & records.get(REFERENCE, {}).keys())
        ratios = [of[seed]["parameters"] / records[REFERENCE][seed]["parameters"] for seed in common]
        rows.append(
            Row(
                variant,
                math.exp(math.fsum(logs[variant].values()) / len(of)),
                paired_difference(logs[variant], reference) if variant != REFERENCE else None,
                paired_difference(logs[variant], logs.get(ESTIMATED, {}))
                if variant not in (REFERENCE, ESTIMATED)
                else None,
                share_of_gap(logs[variant], reference, truth) if variant != REFERENCE else None,
                _correlation(of),
                math.fsum(ratios) / len(ratios) if ratios else math.nan,
                len(of),
            )
        )
    return rows


def _correlation(records: Mapping[int, Mapping[str, Any]]) -> float | None:
    from scipy.stats import spearmanr

    pairs = [([*r["ranks"].values()], [r["planted"][name] for name in r["ranks"]]) for r in records.values()]
    if any(len(set(ranks)) == 1 for ranks, _ in pairs):
        return None
    return math.fsum(float(spearmanr(*pair).statistic) for pair in pairs) / len(pairs)


def share_of_gap(
    values: Mapping[int, float], reference: Mapping[int, float], truth: Mapping[int, float]
) -> Share | None:
    """mean(reference − values) / mean(reference − truth) over the seeds that all three have.

    None without any seed, and where there is no gap: the truth is not better, or not clearly so.
    """
    seeds = values.keys() & reference.keys() & truth.keys()
    gain, gap = (paired_difference(reference, {s: log[s] for s in seeds}) for log in (values, truth))
    ratio = ratio_of_means(gain, gap) if gain and gap else None
    if ratio is None or gap is None or gap.mean <= 0:
        return None
    if ratio.low is None and len(seeds) >= SEEDS_FOR_AN_INTERVAL:
        return None
    return Share(ratio.value, ratio.low, ratio.high)
