"""Summarize records for a comparison: one group a (task, model, rank), one row a method with its settings.

Records in, numbers out; `tables` and `charts` show them.

Two runs belong to the same row if nothing but the seed differs. So a folder in which a method was run with
two learning rates has two rows for it, and no mean is ever taken over different settings. Every row is
compared with the row of `lora` that shares its schedule, or with the only one there is, and then the settings in
which they differ are named; seed by seed, where the data were the same; times only where machine and
command were, so that the two runs can be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from glora.experiments.config import ALLOCATION_SETTINGS, SETTINGS, RunConfig
from glora.experiments.data.metric import Metric, metric_of
from glora.experiments.methods.registry import METHODS, method_title, named_settings
from glora.experiments.number_format import distinct_names, numbered
from glora.experiments.publishing import published_name
from glora.experiments.records.schema import RunRecord
from glora.experiments.report.statistics import (
    Estimate,
    PairedDifference,
    PairedRatio,
    estimate,
    paired_difference,
    paired_ratio,
)

REFERENCE = "lora"

NAMED_BY_GROUP = ("task", "model", "rank")
NAMED_BY_ROW = ("method", "seed")
BESIDE_THE_SCHEDULE = (*NAMED_BY_ROW, *ALLOCATION_SETTINGS)


@dataclass(frozen=True)
class MethodSummary:
    """One row: the finished runs of a method that differ in nothing but the seed.

    Attributes:
        label: the method's title, with the settings that tell its rows apart if it has several.
        runs: by seed.
        reference: the runs of `lora` that they are compared with; none where no row of it fits.
    """

    label: str
    runs: tuple[RunRecord, ...]
    reference: tuple[RunRecord, ...]

    @property
    def method(self) -> str:
        """The method, as configured."""
        return self.runs[0].config.method

    @property
    def is_reference(self) -> bool:
        """True for a row of `lora`, which the others are compared with."""
        return self.method == REFERENCE

    def over_seeds(self, value: Callable[[RunRecord], float | None]) -> Estimate | None:
        """Return mean and spread over the runs that have the value; None if none has it."""
        return _over(self.runs, value)

    def metric(self, metric: Metric) -> Estimate | None:
        """Return mean and spread of a metric, as recorded (not in percent)."""
        return self.over_seeds(lambda run: run.final.get(metric.key))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the finished runs."""
        return tuple(run.config.seed for run in self.runs)

    @property
    def adapter_share(self) -> float | None:
        """Adapter parameters at the end over the reference's (1.3 is 30 % more); 0 without adapters."""
        return self._share(lambda run: run.adapter_parameters_after)

    @property
    def trainable_share(self) -> float | None:
        """The same of all trained parameters, head included."""
        return self._share(lambda run: run.trainable_parameters_after)

    @property
    def time_ratio(self) -> PairedRatio | None:
        """Training time divided by the reference's of the same seed, on one machine by one command."""
        timed = [pair for pair in self._pairs if side_by_side(*pair)]
        return paired_ratio(*_by_seed(timed, lambda run: run.train_seconds))

    @functools.cached_property
    def differences(self) -> dict[str, PairedDifference]:
        """Metric's key -> difference to the reference over the seeds with the same data; none of the reference itself."""
        names = [] if self.is_reference else sorted({name for run in self.runs for name in run.final})
        return {name: found for name in names if (found := self._difference(name)) is not None}

    @property
    def other_settings(self) -> tuple[str, ...]:
        """Settings, beside those of allocation alone, in which the reference is not like this row."""
        ours, *theirs = (runs[0].config for runs in (self.runs, self.reference) if runs)
        names = differing_settings([ours, *theirs], BESIDE_THE_SCHEDULE)
        return tuple(f"{name}={ours.setting(name)} against {theirs[0].setting(name)}" for name in names)

    @property
    def _pairs(self) -> list[tuple[RunRecord, RunRecord]]:
        """Runs of one seed on the same examples, as far as both say what they saw."""
        others = {run.config.seed: run for run in self.reference}
        pairs = [(run, others[run.config.seed]) for run in self.runs if run.config.seed in others]
        return [pair for pair in pairs if len({run.provenance.data_fingerprint for run in pair} - {None}) <= 1]

    def _difference(self, metric: str) -> PairedDifference | None:
        return paired_difference(*_by_seed(self._pairs, lambda run: run.final.get(metric)))

    def _share(self, value: Callable[[RunRecord], float | None]) -> float | None:
        """The mean over all seeds, divided by the reference's."""
        ours, theirs = (_over(runs, value) for runs in (self.runs, self.reference))
        return ours.mean / theirs.mean if ours and theirs and theirs.mean else None


def _over(runs: Sequence[RunRecord], value: Callable[[RunRecord], float | None]) -> Estimate | None:
    values = [found for run in runs if (found := value(run)) is not None]
    return estimate(values) if values else None


def _by_seed(
    pairs: Sequence[tuple[RunRecord, RunRecord]], value: Callable[[RunRecord], float | None]
) -> Iterator[dict[int, float]]:
    """Seed -> value, of the first runs and of the second ones."""
    for runs in zip(*pairs) if pairs else ((), ()):
        yield {run.config.seed: found for run in runs if (found := value(run)) is not None}


@dataclass(frozen=True)
class GroupSummary:
    """All methods on one task with one model and one nominal rank.

    Attributes:
        task: the task, as configured.
        model: the model, as configured.
        rank: rank of uniform LoRA, from which every method's budget follows.
        heading: `rte · microsoft/deberta-v3-base · rank 8`; unlike the heading of every other group.
        names: of the task and the model, as the heading has them.
        primary_metric: the metric the task is judged by; None if no run finished.
        metrics: every metric of the group, the primary one first, secondary splits last.
        methods: one row a method and setting, `lora` first, then by name.
        failures: the runs that failed.
    """

    task: str
    model: str
    rank: int
    heading: str
    names: tuple[str, str]
    primary_metric: Metric | None
    metrics: tuple[Metric, ...]
    methods: tuple[MethodSummary, ...]
    failures: tuple[RunRecord, ...]

    @property
    def reference(self) -> MethodSummary | None:
        """The row of `lora` itself, if it has finished runs."""
        return next((method for method in self.methods if method.is_reference), None)

    @property
    def reference_label(self) -> str:
        """The name of what the others are compared with."""
        return self.reference.label if self.reference else METHODS[REFERENCE].title

    def compared_with(self, method: MethodSummary) -> str:
        """Return the label of a row's reference: with several rows of `lora`, not always the first."""
        return next((row.label for row in self.methods if row.runs == method.reference), self.reference_label)

    @property
    def baseline(self) -> dict[str, float]:
        """The metrics of always answering the majority class; empty where the runs do not agree on it, or do not know it."""
        found = [run.baseline for run in self.finished]
        return found[0] if found and all(each == found[0] for each in found) else {}

    def primary_difference(self, method: MethodSummary) -> PairedDifference | None:
        """Return a method's difference to the reference in the metric that the task is judged by."""
        return method.differences.get(self.primary_metric.key) if self.primary_metric else None

    def not_above_baseline(self, method: MethodSummary) -> tuple[int, ...]:
        """Return the seeds whose run is no better than always answering the majority class."""
        metric = self.primary_metric
        if metric is None or metric.key not in self.baseline:
            return ()
        return tuple(run.config.seed for run in method.runs if run.final[metric.key] <= self.baseline[metric.key])

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The finished runs of all rows."""
        return tuple(run for method in self.methods for run in method.runs)


def summarise(records: Sequence[RunRecord]) -> list[GroupSummary]:
    """Group records by task, model and rank, and compare the methods of each group.

    Args:
        records: finished and failed runs in any order.

    Returns:
        The groups, by task, model and rank.
    """
    groups: dict[tuple[str, str, int], list[RunRecord]] = {}
    for record in records:
        config = record.config
        groups.setdefault((published_name(config.task), published_name(config.model), config.rank), []).append(record)
    configs = [groups[name][0].config for name in sorted(groups)]  # older records have whole paths
    tasks, models = distinct_names(c.task for c in configs), distinct_names(c.model for c in configs)
    names = [(tasks[c.task], models[c.model]) for c in configs]
    headings = numbered([f"{task} · {model} · rank {c.rank}" for (task, model), c in zip(names, configs)])
    return [
        _summarise_group(groups[key], heading, named) for key, heading, named in zip(sorted(groups), headings, names)
    ]


def differing_settings(configs: Sequence[RunConfig], ignored: Sequence[str] = ()) -> list[str]:
    """Names of the settings that are not the same in all `configs`, in the order of the schema."""
    names = [name for name in SETTINGS if name not in ignored]
    return [name for name in names if len({config.setting(name) for config in configs}) > 1]


def _summarise_group(records: list[RunRecord], heading: str, names: tuple[str, str]) -> GroupSummary:
    finished = [record for record in records if record.status == "finished"]
    failures = sorted(
        (record for record in records if record.status == "failed"),
        key=lambda record: (record.config.method, record.config.seed, record.key),
    )
    rows = _rows(finished)
    labels = _labels(rows)
    methods = tuple(MethodSummary(label, runs, counterpart(runs, rows)) for runs, label in zip(rows, labels))
    config = records[0].config
    primary = metric_of(finished[0].primary_metric or "") if finished else None
    metrics = {
        metric_of(name, "" if found.split == record.main_split else found.split)
        for record in finished
        for found in record.metrics
        for name in found.values
    }
    return GroupSummary(
        task=config.task,
        model=config.model,
        rank=config.rank,
        heading=heading,
        names=names,
        primary_metric=primary,
        metrics=tuple(sorted(metrics, key=lambda metric: (metric != primary, metric.split, metric.name))),
        methods=methods,
        failures=tuple(failures),
    )


def _rows(finished: Sequence[RunRecord]) -> list[tuple[RunRecord, ...]]:
    """Runs that differ in nothing but the seed, `lora` first; of two runs of a seed the later one counts."""
    rows: dict[str, dict[int, RunRecord]] = {}
    for record in sorted(finished, key=lambda record: record.finished_at):
        settings = record.config.model_copy(update={"seed": 0}).model_dump_json()
        rows.setdefault(settings, {})[record.config.seed] = record
    methods = {settings: next(iter(runs.values())).config.method for settings, runs in rows.items()}
    ordered = sorted(rows, key=lambda settings: (methods[settings] != REFERENCE, methods[settings], settings))
    return [tuple(run for _, run in sorted(rows[settings].items())) for settings in ordered]


def _labels(rows: Sequence[tuple[RunRecord, ...]]) -> list[str]:
    """The method's title, with the settings of its variant; where a title has several rows, with those in which they differ."""
    configs = [runs[0].config for runs in rows]
    titles = [method_title(config) for config in configs]
    labels = []
    for config, title in zip(configs, titles):
        siblings = [other for other, theirs in zip(configs, titles) if theirs == title]
        own = named_settings(config.method) - {"rule"}  # the title has the rule
        shown = own.union(differing_settings(siblings, ignored=NAMED_BY_ROW))
        settings = ", ".join(filter(None, (_setting_text(config, name) for name in SETTINGS if name in shown)))
        labels.append(f"{title} ({settings})" if settings else title)
    return numbered(labels)


def _setting_text(config: RunConfig, name: str) -> str:
    """`rank 4` or `epochs=5`; empty for a setting that is not given."""
    if name == "average_rank" and config.allocation.total_rank is None:
        return f"rank {config.allocation.average_rank or config.rank:g}"
    value = config.setting(name)
    return "" if value is None else f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def counterpart(
    runs: tuple[RunRecord, ...], rows: Sequence[tuple[RunRecord, ...]], method: str = REFERENCE
) -> tuple[RunRecord, ...]:
    """The row of `method` to compare `runs` with: all settings equal, else the schedule equal, else the only row."""
    candidates = [row for row in rows if row[0].config.method == method]
    for ignored in (NAMED_BY_ROW, BESIDE_THE_SCHEDULE):
        for candidate in candidates:
            if not differing_settings([runs[0].config, candidate[0].config], ignored):
                return candidate
    return candidates[0] if len(candidates) == 1 else ()


def side_by_side(run: RunRecord, other: RunRecord) -> bool:
    """Return True if two times can be divided: one machine, and one command, as far as the records say which."""
    ours, theirs = run.provenance, other.provenance
    return ours.machine == theirs.machine and ours.process_started_at == theirs.process_started_at
