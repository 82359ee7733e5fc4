"""The tables of a comparison, made once and shown in the terminal, in Markdown and on the page alike.

Five tables a group: results, differences to LoRA, budgets, costs, the methods; one more where the settings were searched, and
one with the published claims for GLoRA where the published experiment was made. The budget table always has both budgets,
total rank and parameters, because runs that are equal in one need not be equal in the other.
"""

from __future__ import annotations

from glora.experiments.data.metric import metric_of
from glora.experiments.methods.registry import method_summary
from glora.experiments.number_format import settings_text
from glora.experiments.publishing import published_name
from glora.experiments.report import cells
from glora.experiments.report.cells import Cell, Quantity, ReportTable, Tone, Unit, Verdict
from glora.experiments.report.claims import Finding, findings
from glora.experiments.report.statistics import SEEDS_FOR_AN_INTERVAL, PairedDifference
from glora.experiments.report.summary import GroupSummary, MethodSummary
from glora.experiments.search.record import SearchRecord
from glora.messages import pluralize

TONES: dict[str, Tone] = {"holds": "good", "does not hold": "bad", "not shown": "open"}


def group_tables(group: GroupSummary) -> list[ReportTable]:
    """Return the tables of a group that have something to show."""
    if not group.methods:
        return []
    tables = (results_table, differences_table, claims_table, budget_table, cost_table, methods_table)
    return [table for make_table in tables if (table := make_table(group)).rows]


def results_table(group: GroupSummary) -> ReportTable:
    """Return a row a method, every metric as mean ± sample standard deviation, and the majority class's row below."""
    baseline, verdicts = group.baseline, [_learned(group, method) for method in group.methods]
    learned = ("learned?",) if any(verdict and verdict.tone == "bad" for verdict in verdicts) else ()
    rows: list[tuple[Cell, ...]] = [
        (
            method.label,
            *(verdict for _ in learned),
            *(cells.estimate_cell(method.metric(metric), cells.metric_unit(metric)) for metric in group.metrics),
            Quantity(len(method.seeds), cells.COUNT),
        )
        for method, verdict in zip(group.methods, verdicts)
    ]
    if baseline:
        always = (
            None if (value := baseline.get(metric.key)) is None else Quantity(value, cells.metric_unit(metric))
            for metric in group.metrics
        )
        rows.append(("majority class", *(None for _ in learned), *always, None))
    return ReportTable(
        "Results: mean ± standard deviation",
        ("method", *learned, *(metric.header for metric in group.metrics), "seeds"),
        tuple(rows),
        "After the last step; the standard deviation is the sample's (n - 1) over seeds."
        + (
            " Majority class: always the most frequent class of the training examples, without a model."
            if baseline
            else ""
        ),
    )


def differences_table(group: GroupSummary) -> ReportTable:
    """Return a row a method but lora: what may be concluded, and the paired difference of each metric."""

    def row(method: MethodSummary) -> tuple[Cell, ...]:
        found = group.primary_difference(method)
        return (
            method.label,
            verdict_on(group, found) if found else None,
            *(cells.difference_cell(metric, method.differences.get(metric.key)) for metric in group.metrics),
            Quantity(len(found.seeds) if found else 0, cells.COUNT),
        )

    return ReportTable(
        f"Difference to {group.reference_label}: mean [95 % interval]",
        ("method", "verdict", *(metric.header for metric in group.metrics), "pairs"),
        tuple(row(method) for method in group.methods if method.differences),
        "Differences are taken between runs of one seed. The interval is Student's t on them, given from "
        f"{SEEDS_FOR_AN_INTERVAL} pairs on: fewer conclude nothing. The verdict is about the first metric.",
    )


def claims_table(group: GroupSummary) -> ReportTable:
    """Return a row a claim that GLoRA was proposed with; no rows but for the published experiment."""
    rows = findings(group)
    return ReportTable(
        "What is claimed for GLoRA",
        ("claim", "verdict", "expected", "measured"),
        tuple(
            (
                f"{label}: {found.claim}" if len(rows) > 1 else found.claim,
                _verdict(found),
                found.expected,
                _measured_text(found),
            )
            for label, row in rows.items()
            for found in row
        ),
        "GLoRA was proposed with these four numbers. A verdict is about the 95 % interval, not the mean. It holds if the "
        "whole interval is in the expected range, it does not hold if the whole interval is outside (in brackets: "
        "on which side), and otherwise it is not shown. The share of AdaLoRA's gain has Fieller's interval, and exists only "
        "where that gain has an interval above zero. Parameters are counted and need no interval (in brackets: fewest, most): "
        "equal means within one rank of the largest matrix in every seed.",
    )


def budget_table(group: GroupSummary) -> ReportTable:
    """Return a row a method: total rank and parameters, and how much of lora's that is."""
    totals = ("total rank", "adapter parameters", f"adapter / {group.reference_label}")
    return ReportTable(
        "Budget: at the end, or from start → end where it changed",
        ("method", *totals, "all trained parameters", f"all / {group.reference_label}"),
        tuple(
            (
                method.label,
                cells.count_cell(
                    method.over_seeds(lambda run: sum(run.ranks.values()) if run.ranks else None),
                    method.over_seeds(lambda run: sum(run.initial_ranks.values()) if run.initial_ranks else None),
                ),
                cells.count_cell(
                    method.over_seeds(lambda run: run.adapter_parameters_after),
                    method.over_seeds(lambda run: run.adapter_parameters_before),
                ),
                cells.share_cell(method.adapter_share),
                cells.count_cell(method.over_seeds(lambda run: run.trainable_parameters_after)),
                cells.share_cell(method.trainable_share),
            )
            for method in group.methods
        ),
        "Total rank is the sum of all matrices' ranks; one rank costs d_in + d_out parameters, so equal total rank "
        "is not equal size. All trained parameters include the head, and directions that AdaLoRA has masked.",
    )


def cost_table(group: GroupSummary) -> ReportTable:
    """Return a row a method: time, relative to lora and absolute, and memory; preparation only where a method has one."""
    prepared = any(run.preparation_seconds for method in group.methods for run in method.runs)
    preparation = ("of it preparation",) if prepared else ()
    ratios = [method.time_ratio for method in group.methods if not method.is_reference]
    interval = ("95 % interval",) if any(ratio and ratio.low is not None for ratio in ratios) else ()

    def row(method: MethodSummary) -> tuple[Cell, ...]:
        ratio, step = method.time_ratio, method.over_seeds(lambda run: run.seconds_per_step)
        return (
            method.label,
            Quantity(1, cells.COUNT) if method.is_reference else cells.estimate_cell(ratio, cells.RATIO),
            *(None if method.is_reference else cells.interval_cell(ratio) for _ in interval),
            cells.time_cell(method.over_seeds(lambda run: run.train_seconds)),
            *(cells.time_cell(method.over_seeds(lambda run: run.preparation_seconds)) for _ in preparation),
            Quantity(step.mean, cells.MILLISECONDS) if step else None,
            cells.memory_cell(method.over_seeds(lambda run: run.peak_memory_bytes)),
        )

    return ReportTable(
        "Cost: time without evaluation, peak memory",
        (
            "method",
            f"time / {group.reference_label}",
            *interval,
            "training time",
            *preparation,
            "time a step",
            "peak memory",
        ),
        tuple(row(method) for method in group.methods),
        f"Times relative to {group.reference_label} are ratios of two runs of one seed, made side by side by one command on "
        f"one machine: mean ± standard deviation, and{'' if interval else ' from three seeds on'} Student's t interval."
        + (" Preparation (a look at activations or gradients, an SVD) counts as training time." if prepared else ""),
    )


def tuning_table(record: SearchRecord, task: str, model: str) -> ReportTable | None:
    """Return how the methods of a model and data set were tuned; None if the search was not about it."""
    wanted = published_name(task), published_name(model)
    methods = [m for m in record.methods if (published_name(m.task), published_name(m.model)) == wanted]
    if not methods:
        return None
    examples, metric = methods[0].examples, metric_of(methods[0].metric)
    return ReportTable(
        "How the settings were tuned",
        ("method", "settings found", f"{metric.header} in tuning", "trials", "stopped early", "failed"),
        tuple(
            (
                method.method,
                settings_text(method.best),
                Quantity(method.best_value, cells.metric_unit(metric)),
                *(
                    Quantity(trials, cells.COUNT)
                    for trials in (
                        sum(method.trials.values()),
                        method.trials.get("stopped early", 0),
                        method.trials.get("failed", 0),
                    )
                ),
            )
            for method in methods
        ),
        f"{record.sampler}; {record.pruner}; the same for every method. Trials were trained on {examples['train']:,} of the "
        f"training examples with seed {record.trial_seed} and judged by {pluralize(examples['tuning'], 'other')}; the splits "
        "that are reported here were not read. Of many trials the best is partly luck, so the value in tuning is not one to "
        "report.",
    )


def methods_table(group: GroupSummary) -> ReportTable:
    """Return a row a method: what it does, and how it is written on the command line."""
    return ReportTable(
        "The methods",
        ("method", "what it does", "in --methods"),
        tuple((method.label, method_summary(method.runs[0].config) or None, method.method) for method in group.methods),
        "LoRA trains two thin matrices of a rank r beside each weight matrix of a frozen model; the rank is their width.",
    )


def verdict_on(group: GroupSummary, found: PairedDifference) -> Verdict:
    """Return the conclusion that a difference in the primary metric allows."""
    metric = group.primary_metric
    if found.direction is None or metric is None:
        return Verdict(found.verdict)
    better = (found.direction == "higher") == metric.higher_is_better
    return Verdict("better" if better else "worse", "good" if better else "bad")


def _learned(group: GroupSummary, method: MethodSummary) -> Verdict | None:
    """Return whether the runs are above the majority class; None where that is not known."""
    if not group.baseline:
        return None
    failed = group.not_above_baseline(method)
    if not failed:
        return Verdict("yes", "good")
    return Verdict(
        "nothing" if len(failed) == len(method.runs) else f"nothing in seed {', '.join(map(str, failed))}", "bad"
    )


def _measured_text(found: Finding) -> str:
    """`+0.72 [-0.10, +1.54] points (3 seeds)`, or why there is no number."""
    if found.mean is None:
        return found.remark
    unit = Unit(1.0, 2, found.unit, "+") if found.signed else Unit(1.0, 1, found.unit)
    spread = found.low is not None and found.high is not None and found.low < found.high
    low, high = (found.low, found.high) if spread else (None, None)
    return f"{Quantity(found.mean, unit, low=low, high=high)} ({pluralize(found.seeds, 'seed')})"


def _verdict(found: Finding) -> Verdict:
    """The verdict; with the side of the range, or why nothing is shown, where `measured` does not say it."""
    remark = found.remark if found.mean is not None else ""
    return Verdict(f"{found.verdict} ({remark})" if remark else found.verdict, TONES[found.verdict])
