"""The report's tables as text, made once and shown in the terminal and in markdown alike.

Three tables a group: what was reached, by how much it differs from lora, and what it cost. The cost table
always has both budgets, total rank and parameters, because runs that are equal in one need not be equal in
the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from glora.experiments import number_format as text
from glora.experiments.statistics import SEEDS_FOR_AN_INTERVAL
from glora.experiments.summary import REFERENCE, GroupSummary, MethodSummary

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class TextTable:
    """A table whose cells are ready to be shown; the first column is on the left, the others on the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def group_tables(group: GroupSummary) -> list[TextTable]:
    """The tables of a group that have something to show."""
    if not group.methods:
        return []
    tables = [results_table(group), differences_table(group), budget_table(group), cost_table(group)]
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
    )


def budget_table(group: GroupSummary) -> TextTable:
    """A row a method: what it spends in both currencies, total rank and parameters."""
    return TextTable(
        "Budget: at the end, or from start → end where it changed",
        ("method", "total rank", "adapter parameters", "all trained parameters"),
        tuple(
            (
                method.label,
                text.count_text(method.total_rank, method.total_rank_before),
                text.count_text(method.adapter_parameters, method.adapter_parameters_before),
                text.count_text(method.trainable_parameters),
            )
            for method in group.methods
        ),
        "Total rank is the sum of all matrices' ranks; one rank costs d_in + d_out parameters, so equal total rank "
        "is not equal size. All trained parameters include the head, and directions that AdaLoRA has masked.",
    )


def cost_table(group: GroupSummary) -> TextTable:
    """A row a method: time, relative to lora and absolute, and memory."""
    return TextTable(
        "Cost: time without evaluation, peak memory",
        ("method", f"time / {REFERENCE}", "training time", "time a step", "peak memory"),
        tuple(
            (
                method.label,
                "1 (reference)" if method.is_reference else text.with_spread(method.time_ratio, decimals=3),
                text.time_text(method.train_seconds),
                text.step_text(method.seconds_per_step),
                text.memory_text(method.peak_memory_bytes),
            )
            for method in group.methods
        ),
        f"Times relative to {REFERENCE} are ratios of two runs of one seed on one machine: mean ± standard deviation.",
    )


def as_markdown(table: TextTable) -> str:
    """The table in GitHub's markdown, without its title."""
    lines = [table.columns, ("---", *("---:" for _ in table.columns[1:])), *table.rows]
    return "\n".join(f"| {' | '.join(escape_markdown(cell) for cell in line)} |" for line in lines)


def as_rich(table: TextTable) -> Table:
    """The table for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(table.columns):
        shown.add_column(Text(column), justify="right" if position else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def escape_markdown(cell: str) -> str:
    """A text that must not end a cell, start a tag or become emphasis."""
    for character in "\\`*_|<[":
        cell = cell.replace(character, f"\\{character}")
    return " ".join(cell.split())


def _pairs_and_verdict(group: GroupSummary, method: MethodSummary) -> Sequence[str]:
    found = method.differences.get(group.primary_metric or "")
    return ("0", text.MISSING) if found is None else (str(len(found.seeds)), found.verdict)
