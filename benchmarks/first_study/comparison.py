"""Two methods by their records: paired differences on each task, over all tasks, and where the ranks go.

Each method is trained with the learning rate that was found for it on a part of the training examples. A difference is taken
on one task and one seed. Losses are compared by their ratio, since those of two tasks have no common unit.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import spearmanr

from glora.experiments.records.schema import RunRecord
from glora.experiments.report.statistics import PairedDifference, estimate, paired_difference

T = TypeVar("T")

Runs = Mapping[str, Mapping[str, Mapping[int, RunRecord]]]
"""Task -> method -> seed -> record."""


def by_task(records: Sequence[RunRecord]) -> dict[str, dict[str, dict[int, RunRecord]]]:
    """The finished runs that are reported; trials of the search keep no record."""
    runs: dict[str, dict[str, dict[int, RunRecord]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        if record.status == "finished":
            runs[record.config.task][record.config.method][record.config.seed] = record
    return {task: dict(methods) for task, methods in runs.items()}


def metric(record: RunRecord) -> float:
    """The task's own metric after the last step, times 100."""
    assert record.primary_metric is not None
    return 100 * record.final[record.primary_metric]


def log_loss(record: RunRecord) -> float:
    """Logarithm of the mean loss on the evaluation split after the last step."""
    loss = record.metrics[-1].loss
    assert loss is not None
    return math.log(loss)


def log_training_loss(record: RunRecord) -> float:
    """Logarithm of the mean training loss over the last epoch."""
    loss = record.metrics[-1].train_loss
    assert loss is not None
    return math.log(loss)


@dataclass(frozen=True)
class Comparison:
    """One method against another.

    Attributes:
        task: the task; None for all of them together.
        metric: difference of the metric in points.
        loss: mean log ratio of the losses on the evaluation split.
        training_loss: the same of the training losses of the last epoch.
        parameters: the adapter's, at the end, divided by the other's.
    """

    task: str | None
    metric: PairedDifference
    loss: PairedDifference
    training_loss: PairedDifference
    parameters: float


def compare(runs: Runs, method: str, other: str) -> list[Comparison]:
    """Task by task, then over all (task, seed) together if there are several tasks; only tasks that have both."""
    found = []
    pairs: list[tuple[RunRecord, RunRecord]] = []
    for task, methods in runs.items():
        mine, theirs = methods.get(method, {}), methods.get(other, {})
        common = sorted(mine.keys() & theirs.keys())
        if common:
            of_task = [(mine[seed], theirs[seed]) for seed in common]
            pairs += of_task
            found.append(_comparison(task, of_task))
    return [*found, _comparison(None, pairs)] if len(found) > 1 else found


def _comparison(task: str | None, pairs: Sequence[tuple[RunRecord, RunRecord]]) -> Comparison:
    def difference(value: Callable[[RunRecord], float]) -> PairedDifference:
        values = [{i: value(pair[side]) for i, pair in enumerate(pairs)} for side in (0, 1)]
        paired = paired_difference(*values)
        assert paired is not None
        return paired

    sizes = [(mine.adapter_parameters_after or 0, theirs.adapter_parameters_after or 1) for mine, theirs in pairs]
    return Comparison(
        task=task,
        metric=difference(metric),
        loss=difference(log_loss),
        training_loss=difference(log_training_loss),
        parameters=estimate([mine / theirs for mine, theirs in sizes]).mean,
    )


def mean_ranks(runs: Mapping[int, RunRecord], part: Callable[[str], T]) -> dict[T, float]:
    """Return the mean rank over matrices and seeds by a part of the matrix's name: `kind_of` or `layer_of`."""
    ranks: dict[T, list[float]] = defaultdict(list)
    for record in runs.values():
        for name, rank in record.ranks.items():
            ranks[part(name)].append(rank)
    return {each: estimate(values).mean for each, values in ranks.items()}


def agreement_of_seeds(runs: Mapping[int, RunRecord]) -> float | None:
    """Mean Spearman correlation of the ranks of two seeds; None with fewer than two."""
    correlations = [rank_correlation(a, b) for a, b in itertools.combinations(runs.values(), 2)]
    return estimate(correlations).mean if correlations else None


def rank_correlation(a: RunRecord, b: RunRecord) -> float:
    """Spearman's, over the matrices that both have."""
    names = sorted(a.ranks.keys() & b.ranks.keys())
    return float(spearmanr([a.ranks[name] for name in names], [b.ranks[name] for name in names])[0])


def agreement_of_tasks(runs: Runs, method: str) -> dict[tuple[str, str], float]:
    """Two tasks -> mean Spearman correlation of their ranks, over the seeds that both have."""
    found = {}
    for a, b in itertools.combinations([task for task in runs if method in runs[task]], 2):
        common = runs[a][method].keys() & runs[b][method].keys()
        if common:
            found[a, b] = estimate(
                [rank_correlation(runs[a][method][seed], runs[b][method][seed]) for seed in common]
            ).mean
    return found
