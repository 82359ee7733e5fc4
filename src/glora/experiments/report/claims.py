"""The claims that GLoRA was proposed with, compared with what was measured. Pure: a summary in, verdicts out.

They are about one experiment, DeBERTa-v3-base on MNLI with `glora` as it was proposed; other comparisons have no findings.

Four numbers were claimed: +0.5 to +1.0 points of accuracy over LoRA, 90 to 95 % of AdaLoRA's gain, a training time within
±2 % of LoRA's, and LoRA's number of parameters. A verdict is about an interval, never about a mean alone:

- "holds" only if the whole 95 % interval is in the claimed range;
- "does not hold" only if the whole interval is outside it, and then on which side;
- "not shown" in every other case: the interval reaches over an end of the range, there are fewer than three seeds, a
  run has diverged, or the number does not exist.

The share of AdaLoRA's gain is mean(glora - lora) / mean(adalora - lora), a ratio of two uncertain numbers, with Fieller's
interval (`statistics.ratio_of_means`). It exists only where AdaLoRA's own gain is shown to be positive, by an interval
above zero over the same seeds; there Fieller's interval is bounded, too.

Parameters are counted, not estimated, so they need no interval and no third seed: they are equal if in every seed they are
within one rank of the largest matrix, the closest that whole ranks can promise to come to a budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from glora.experiments.data.metric import METRICS
from glora.experiments.publishing import published_name, without_digest
from glora.experiments.report.cells import difference_cell
from glora.experiments.report.statistics import SEEDS_FOR_AN_INTERVAL, ratio_of_means
from glora.experiments.report.summary import REFERENCE, GroupSummary, MethodSummary, counterpart
from glora.messages import pluralize

PROPOSED, RIVAL = "glora", "adalora"
PUBLISHED_MODEL, PUBLISHED_TASK = "deberta-v3-base", "mnli"
ACCURACY = METRICS["accuracy"]
GAIN_IN_POINTS = (0.5, 1.0)
SHARE_IN_PERCENT = (90.0, 95.0)
TIME_IN_PERCENT = (-2.0, 2.0)

Verdict = Literal["holds", "does not hold", "not shown"]


@dataclass(frozen=True)
class Finding:
    """One claim and what was measured.

    Attributes:
        claim: what is claimed, without the number.
        expected: the claimed range, in words.
        verdict: what the interval allows to be said.
        unit: of the numbers below: "points" or "%".
        signed: whether they are differences, to be shown with their sign.
        mean: what was measured, mean over the seeds; None if there is no such number.
        low: lower end of the 95 % interval, or the smallest count; None if there is none.
        high: upper end of the interval, or the largest count.
        seeds: how many seeds it is from.
        remark: on which side of the range it is, or why nothing is shown; may be empty.
    """

    claim: str
    expected: str
    verdict: Verdict
    unit: str
    signed: bool = True
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    remark: str = ""


def findings(group: GroupSummary) -> dict[str, tuple[Finding, ...]]:
    """Return gain, share, time and parameters by the label of each row of the proposed method, in the published experiment."""
    model = without_digest(published_name(group.model)).rpartition("/")[2]
    if (model, group.task) != (PUBLISHED_MODEL, PUBLISHED_TASK):
        return {}
    return {
        row.label: (_gain(row), _share(group, row), _time(row), _parameters(row))
        for row in group.methods
        if row.method == PROPOSED
        and ACCURACY.key in row.differences
        and row.runs[0].config.allocation.rule == "gradient_norm"
    }


def judged(low: float, high: float, expected: tuple[float, float]) -> tuple[Verdict, str]:
    """The verdict on an interval, and on which side of the expected range it is."""
    if expected[0] <= low and high <= expected[1]:
        return "holds", ""
    if low > expected[1]:
        return "does not hold", "more"
    if high < expected[0]:
        return "does not hold", "less"
    return "not shown", ""


def _gain(row: MethodSummary) -> Finding:
    empty = Finding(f"gain over {REFERENCE}, {ACCURACY.label}", "+0.5 to +1.0 points", "not shown", "points")
    difference = row.differences[ACCURACY.key]
    values = difference.mean, difference.low, difference.high
    return _from_interval(empty, values, ACCURACY.scale, len(difference.seeds), GAIN_IN_POINTS)


def _share(group: GroupSummary, row: MethodSummary) -> Finding:
    empty = Finding(f"share of {RIVAL}'s gain, {ACCURACY.label}", "90 to 95 %", "not shown", "%", signed=False)
    runs = counterpart(row.runs, [method.runs for method in group.methods], RIVAL)
    rival = next((method for method in group.methods if method.runs == runs), None)
    if rival is None:
        there = any(method.method == RIVAL for method in group.methods)
        return replace(empty, remark=f"no {RIVAL} {'with the same settings' if there else 'to compare with'}")
    theirs = rival.differences.get(ACCURACY.key)
    ratio = ratio_of_means(row.differences[ACCURACY.key], theirs) if theirs else None
    if theirs is None or ratio is None:
        return replace(empty, remark=f"no seed in common with {RIVAL}")
    if len(ratio.seeds) < SEEDS_FOR_AN_INTERVAL:
        return replace(empty, seeds=len(ratio.seeds), remark=_too_few(len(ratio.seeds)))
    if theirs.direction != "higher" or ratio.low is None:
        gain = f"{RIVAL}'s own gain is not shown to be positive: {difference_cell(ACCURACY, theirs)}"
        return replace(empty, seeds=len(ratio.seeds), remark=gain)
    return _from_interval(empty, (ratio.value, ratio.low, ratio.high), 100, len(ratio.seeds), SHARE_IN_PERCENT)


def _time(row: MethodSummary) -> Finding:
    empty = Finding(f"training time against {REFERENCE}", "within ±2 %", "not shown", "%")
    ratio = row.time_ratio
    if ratio is None:
        return replace(empty, remark=f"never measured side by side with {REFERENCE}")
    values = [None if value is None else value - 1 for value in (ratio.mean, ratio.low, ratio.high)]
    return _from_interval(empty, values, 100, ratio.n, TIME_IN_PERCENT)


def _parameters(row: MethodSummary) -> Finding:
    empty = Finding(f"adapter parameters against {REFERENCE}", "equal", "not shown", "%")
    references = {run.config.seed: run for run in row.reference}
    excess, equal = [], True
    for run in row.runs:
        reference = references.get(run.config.seed)
        ours, theirs = run.adapter_parameters_after, reference.adapter_parameters_after if reference else None
        if ours is not None and theirs:
            excess.append(100 * (ours / theirs - 1))
            equal = equal and abs(ours - theirs) <= max(map(sum, run.module_shapes.values()), default=0)
    if not excess:
        return replace(empty, remark="not counted")
    return replace(
        empty,
        verdict="holds" if equal else "does not hold",
        mean=math.fsum(excess) / len(excess),
        low=min(excess),
        high=max(excess),
        seeds=len(excess),
        remark="" if equal else "more" if min(excess) >= 0 else "less" if max(excess) <= 0 else "more or less",
    )


def _from_interval(
    empty: Finding, values: Sequence[float | None], scale: float, seeds: int, expected: tuple[float, float]
) -> Finding:
    """A finding from a mean and its interval (None below three seeds), in the unit of the claim."""
    mean, low, high = (None if value is None else value * scale for value in values)
    if mean is not None and math.isnan(mean):
        return replace(empty, mean=mean, seeds=seeds, remark="a run's value is not a number")
    if low is None or high is None:
        return replace(empty, mean=mean, seeds=seeds, remark=_too_few(seeds))
    verdict, side = judged(low, high, expected)
    return replace(empty, mean=mean, low=low, high=high, seeds=seeds, verdict=verdict, remark=side)


def _too_few(seeds: int) -> str:
    return f"nothing can be concluded from {pluralize(seeds, 'seed')}"
