"""The report's tables as text, made once and shown in the terminal and in markdown alike.

Five tables a group: what was reached, by how much it differs from lora, what became of the claims for GLoRA, what was
spent and what it cost. The budget table always has both budgets, total rank and parameters, because runs that
are equal in one need not be equal in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glora.experiments.report import number_format as text
from glora.experiments.report.claims import Finding, findings
from glora.experiments.report.statistics import SEEDS_FOR_AN_INTERVAL
from glora.experiments.report.summary import REFERENCE, GroupSummary, MethodSummary
from glora.experiments.training.metrics import higher_is_better
from glora.messages import pluralize

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are ready to be shown; columns of words are on the left, those of numbers on the right.

    Attributes:
        title: what it shows.
        columns: their names.
        rows: the cells.
        note: how to read it.
        words: the columns that hold words.
        verdicts: the columns that hold verdicts, which a page may colour.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    words: tuple[str, ...] = ("method",)
    verdicts: tuple[str, ...] = ("verdict",)


def group_tables(group: GroupSummary) -> list[TextTable]:
    """The tables of a group that have something to show."""
    if not group.methods:
        return []
    tables = [
        results_table(group),
        differences_table(group),
        claims_table(group),
        budget_table(group),
        cost_table(group),
    ]
    return [table for table in tables if table.rows]


def results_table(group: GroupSummary) -> TextTable:
    """A row a method: every metric as mean ± sample standard deviation, the primary one first."""
    return TextTable(
        "Results: mean ± standard deviation",
        ("method", *map(text.metric_header, group.metric_names), "seeds"),
        tuple(
            (
                method.label,
                *(text.metric_text(name, method.metrics.get(name)) for name in group.metric_names),
                str(len(method.seeds)),
            )
            for method in group.methods
        ),
        "After the last step; the standard deviation is the sample's (n - 1) over seeds.",
    )


def differences_table(group: GroupSummary) -> TextTable:
    """A row a method but lora: the paired difference of each metric, and what may be concluded."""
    return TextTable(
        f"Difference to {REFERENCE}: mean [95 % interval]",
        ("method", *map(text.metric_header, group.metric_names), "pairs", "verdict"),
        tuple(
            (
                method.label,
                *(text.difference_text(name, method.differences.get(name)) for name in group.metric_names),
                *_pairs_and_verdict(group, method),
            )
            for method in group.methods
            if method.differences
        ),
        "Differences are taken between runs of one seed. The interval is Student's t on them, given from "
        f"{SEEDS_FOR_AN_INTERVAL} pairs on: fewer conclude nothing. The verdict is about the first metric.",
        words=("method", "verdict"),
    )


def claims_table(group: GroupSummary) -> TextTable:
    """A row a claim that GLoRA was proposed with; no rows where GLoRA is not compared."""
    rows = findings(group)
    return TextTable(
        "What is claimed for GLoRA",
        ("claim", "expected", "measured", "verdict"),
        tuple(
            (
                f"{row.label}: {found.claim}" if len(rows) > 1 else found.claim,
                found.expected,
                _measured_text(found),
                _verdict_text(found),
            )
            for row in rows
            for found in row
        ),
        "GLoRA was proposed with these four numbers. A verdict is about the 95 % interval, not the mean. It holds if the "
        "whole interval lies in the expected range, it does not hold if the whole interval lies outside (in brackets: "
        "on which side), and otherwise it is not shown. The share of AdaLoRA's gain has Fieller's interval, and exists only "
        "where that gain has an interval above zero. Parameters are counted and need no interval (in brackets: fewest, most): "
        "equal means within one rank of the largest matrix in every seed.",
        words=("claim", "expected", "measured", "verdict"),
    )


def claims_overview(groups: Sequence[tuple[str, GroupSummary]]) -> TextTable:
    """A row a comparison, under its heading: the verdict on each claim."""
    columns = ("gain over lora", "share of adalora's gain", "training time", "adapter parameters")
    rows = []
    for heading, group in groups:
        found = findings(group)
        for row in found:
            name = f"{heading} · {row.label}" if len(found) > 1 else heading
            rows.append((name, *(_verdict_text(finding, why=False) for finding in row)))
    return TextTable(
        "What is claimed for GLoRA, in every comparison",
        ("comparison", *columns),
        tuple(rows),
        "Each comparison below has the numbers and the rule. Verdicts are not added up: comparisons are not draws from one "
        "population, and of many intervals some miss by chance.",
        words=("comparison", *columns),
        verdicts=columns,
    )


def budget_table(group: GroupSummary) -> TextTable:
    """A row a method: what it spends in both currencies, total rank and parameters, and how much of lora's that is."""
    return TextTable(
        "Budget: at the end, or from start → end where it changed",
        (
            "method",
            "total rank",
            "adapter parameters",
            f"adapter / {REFERENCE}",
            "all trained parameters",
            f"all / {REFERENCE}",
        ),
        tuple(
            (
                method.label,
                text.count_text(method.total_rank, method.total_rank_before),
                text.count_text(method.adapter_parameters, method.adapter_parameters_before),
                text.share_text(method.adapter_share),
                text.count_text(method.trainable_parameters),
                text.share_text(method.trainable_share),
            )
            for method in group.methods
        ),
        "Total rank is the sum of all matrices' ranks; one rank costs d_in + d_out parameters, so equal total rank "
        "is not equal size. All trained parameters include the head, and directions that AdaLoRA has masked.",
    )


def cost_table(group: GroupSummary) -> TextTable:
    """A row a method: time, relative to lora and absolute, and memory; preparation only where some method has one."""
    prepared = any(method.preparation_seconds and method.preparation_seconds.mean for method in group.methods)
    preparation = ("of it preparation",) if prepared else ()
    ratios = [method.time_ratio for method in group.methods if not method.is_reference]
    interval = ("95 % interval",) if any(ratio and ratio.low is not None for ratio in ratios) else ()
    return TextTable(
        "Cost: time without evaluation, peak memory",
        ("method", f"time / {REFERENCE}", *interval, "training time", *preparation, "time a step", "peak memory"),
        tuple(
            (
                method.label,
                "1" if method.is_reference else text.with_spread(method.time_ratio, decimals=3),
                *(
                    text.MISSING if method.is_reference else text.interval_text(method.time_ratio, decimals=3)
                    for _ in interval
                ),
                text.time_text(method.train_seconds),
                *(text.time_text(method.preparation_seconds) for _ in preparation),
                text.step_text(method.seconds_per_step),
                text.memory_text(method.peak_memory_bytes),
            )
            for method in group.methods
        ),
        f"Times relative to {REFERENCE} are ratios of two runs of one seed, made side by side by one command on one "
        f"machine: mean ± standard deviation, and{'' if interval else ' from three seeds on'} Student's t interval of the mean."
        + (" Preparation (a look at activations or gradients, an SVD) counts as training time." if prepared else ""),
    )


def as_markdown(table: TextTable) -> str:
    """The table in GitHub's markdown, without its title."""
    lines = [table.columns, ["---" if name in table.words else "---:" for name in table.columns], *table.rows]
    return "\n".join(f"| {' | '.join(escape_markdown(cell) for cell in line)} |" for line in lines)


def as_rich(table: TextTable) -> Table:
    """The table for the terminal; as long as there is room, a cell is wrapped between its words."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows = [
        [cell.replace("(n = ", "(n=") for cell in row] for row in table.rows
    ]  # one word, so as not to be torn apart
    for place, column in enumerate(table.columns):
        words = " ".join([column, *(row[place] for row in rows)]).split()
        shown.add_column(
            Text(column),
            justify="left" if column in table.words else "right",
            overflow="fold",
            min_width=max(map(len, words)),
        )
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def escape_markdown(cell: str) -> str:
    """A text that must not end a cell, start a tag or become emphasis."""
    for character in "\\`*_|<[":
        cell = cell.replace(character, f"\\{character}")
    return " ".join(cell.split())


def _pairs_and_verdict(group: GroupSummary, method: MethodSummary) -> Sequence[str]:
    metric = group.primary_metric or ""
    found = method.differences.get(metric)
    if found is None:
        return "0", text.MISSING
    if found.verdict not in ("higher", "lower"):
        return str(len(found.seeds)), found.verdict
    better = (found.verdict == "higher") == higher_is_better(metric)
    return str(len(found.seeds)), f"{found.verdict} ({'better' if better else 'worse'})"


def _measured_text(found: Finding) -> str:
    """`+0.72 [-0.10, +1.54] points (3 seeds)`, or why there is no number."""
    if found.mean is None:
        return found.remark
    number = f"{found.mean:+.2f}" if found.signed else f"{found.mean:.1f}"
    interval = ""
    if found.low is not None and found.high is not None and found.low < found.high:
        interval = (
            f" [{found.low:+.2f}, {found.high:+.2f}]" if found.signed else f" [{found.low:.1f}, {found.high:.1f}]"
        )
    return f"{number}{interval} {found.unit} ({pluralize(found.seeds, 'seed')})"


def _verdict_text(found: Finding, *, why: bool = True) -> str:
    """The verdict; with the side of the range it lies on, or why nothing is shown, where `measured` does not say it."""
    remark = found.remark if found.mean is not None and (why or found.verdict != "not shown") else ""
    return f"{found.verdict} ({remark})" if remark else found.verdict
