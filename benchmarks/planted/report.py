"""The table and the picture, from the records alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import altair as alt
from benchmarks.interval_chart import interval, interval_panel, save_picture
from benchmarks.planted.comparison import TRUTH, Row, compare
from benchmarks.planted.grid import (
    CELLS,
    COMPARED,
    SEEDS,
    TUNING_SEEDS,
    UNSEEN,
    WIDE_CELLS,
    WIDE_SEEDS,
    identity,
    settings_of,
)
from benchmarks.planted.task import Setting
from benchmarks.planted.wide import ADALORA, VARIANTS
from benchmarks.records import read_lines
from benchmarks.tables import percent, table, with_interval

from glora.experiments.report.statistics import SEEDS_FOR_AN_INTERVAL

SHOWN_WIDE = ("spectrum_4", "uniform_cut_4", "delta", "planted")


def write_report(records: Path, folder: Path, grid: Mapping[str, Setting] = CELLS) -> None:
    """Write report.md, planted.png and, where there are runs from wide starts, wide.png into a folder.

    Raises:
        SystemExit: there is no record of the base cell.
    """
    cells, unseen = (by_cell(read_lines(records), grid, seeds) for seeds in (SEEDS, UNSEEN))
    if not cells.get("base"):
        raise SystemExit(
            f"{records} has no record of the base setting; make some with `python -m benchmarks.planted run`"
        )
    tables = {cell: compare(of) for cell, of in cells.items() if len(of) > 1}
    confirmed = {cell: compare(of) for cell, of in unseen.items() if len(of) > 1}
    wide = {
        cell: compare(of)
        for cell, of in by_cell(read_lines(records), WIDE_CELLS, WIDE_SEEDS).items()
        if any(VARIANTS[variant].reads_budget for variant in of)  # the others serve every warm-up and budget
    }
    (folder / "report.md").write_text(_report(tables, confirmed, wide), encoding="utf-8")
    _draw(tables, folder / "planted.png")
    if wide:
        _draw_wide(wide, folder / "wide.png")


def by_cell(
    records: list[dict[str, Any]], grid: Mapping[str, Setting], seeds: Iterable[int]
) -> dict[str, dict[str, dict[int, dict[str, Any]]]]:
    """Cell -> variant -> seed -> record, in the order of the grid; uniform LoRA serves every cell that it cannot tell apart."""
    known = {identity(r["setting"], r["variant"], r["seed"]): r for r in records}
    cells: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for cell, setting in grid.items():
        found: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for variant in VARIANTS:
            for seed in seeds:
                record = known.get(identity(settings_of(setting), variant, seed))
                if record is not None:
                    found[variant][seed] = record
        cells[cell] = dict(found)
    return cells


def _report(tables: dict[str, list[Row]], confirmed: dict[str, list[Row]], wide: dict[str, list[Row]]) -> str:
    base, others = tables["base"], {cell: rows for cell, rows in tables.items() if cell != "base"}
    lines = [
        "# Planted ranks",
        "",
        "Made from `records.jsonl` by `python -m benchmarks.planted report`. To uniform, to the estimate: the loss",
        "compared with theirs on the same seeds, mean of the paired log ratio, with its 95 % interval; negative is better.",
        "Share: of the gap between uniform LoRA and the ranks as planted, with Fieller's interval, where there is a clear",
        "gap. Correlation: Spearman's, of the ranks with the planted ones. Parameters: of the adapter, uniform = 1.",
        "The estimated norm is ‖∂L/∂B‖·√d_in/(s·‖A‖), as if A stayed random: the default before it was measured by a sketch.",
        "Losses are geometric means over a row's own seeds, so only rows of as many seeds can be compared by them.",
        "",
        "## Base setting",
        "",
        *table(("ranks by", *COLUMNS), ([VARIANTS[row.variant].what, *_cells(row)] for row in base)),
    ]
    for title, of_cells in (
        ("One factor changed at a time", others),
        (f"Seeds {UNSEEN.start} to {UNSEEN.stop - 1}, unseen until then", confirmed),
        (
            f"Train wide, cut once: seeds {WIDE_SEEDS.start} to {WIDE_SEEDS.stop - 1}, equal parameters where not said "
            f"otherwise; AdaLoRA's learning rate is the best of four on seeds {TUNING_SEEDS.start} to {TUNING_SEEDS.stop - 1}",
            wide,
        ),
    ):
        if of_cells:
            lines += [
                "",
                f"## {title}",
                "",
                *table(
                    ("setting", "ranks by", *COLUMNS),
                    (
                        [cell, VARIANTS[row.variant].what, *_cells(row)]
                        for cell, rows in of_cells.items()
                        for row in rows
                    ),
                ),
            ]
    return "\n".join(lines) + "\n"


COLUMNS = ("loss", "to uniform", "to the estimate", "share of the gap", "correlation", "parameters", "seeds")


def _cells(row: Row) -> list[Any]:
    return [
        f"{row.loss:.2e}",
        with_interval(row.difference, percent),
        with_interval(row.to_estimated, percent),
        "" if row.variant == TRUTH else with_interval(row.share, lambda share: f"{share:.0%}"),
        "" if row.correlation is None else f"{row.correlation:+.2f}",
        f"{row.parameters:.2f}",
        row.seeds,
    ]


def _draw(tables: dict[str, list[Row]], path: Path) -> None:
    # AdaLoRA's rows here are the trials of its learning rate, and the largest diverges
    base = [row for row in tables["base"] if row.difference is not None and row.variant not in ADALORA]
    base = [row for row in base if row.seeds >= SEEDS_FOR_AN_INTERVAL] or base
    seeds = min(row.seeds for row in base), max(row.seeds for row in base)
    detail = (
        "A model learns updates whose ranks are known (the teacher's). "
        "Held-out loss compared with uniform LoRA's, paired by seed, with 95 % intervals: left of zero is better. Above: "
        f"every way to get ranks, at the base setting ({seeds[0]} to {seeds[1]} seeds). Below: one factor changed at a time."
    )
    axis = "difference in held-out loss (%)"
    upper = [_interval(VARIANTS[row.variant].what, "", row) for row in base]
    shown = [variant for variant in COMPARED if variant != "uniform"]
    lower = [
        _interval(cell, VARIANTS[variant].what, row)
        for cell, rows in tables.items()
        for variant in shown
        for row in rows
        if row.variant == variant and row.difference is not None
    ]
    panels = [interval_panel(upper, axis, [""])]
    panels += [interval_panel(lower, axis, [VARIANTS[variant].what for variant in shown])] if lower else []
    save_picture(
        alt.vconcat(*panels).resolve_scale(x="shared", color="independent"),
        "Planted ranks: what an allocation is worth",
        detail,
        path,
    )


def _draw_wide(tables: dict[str, list[Row]], path: Path) -> None:
    values = [
        _interval(cell, VARIANTS[row.variant].what, row)
        for cell, rows in tables.items()
        for row in rows
        if row.difference is not None and row.variant in SHOWN_WIDE
    ]
    detail = (
        "A model learns updates whose ranks are known (the teacher's). "
        "Held-out loss compared with uniform LoRA's at equal parameters (in the last row at equal total rank), paired by "
        f"seed, with 95 % intervals: left of zero is better. {len(WIDE_SEEDS)} unseen seeds; r̄ is the average rank. Where r̄ is "
        "small, the teacher's proportions are not the best ranks."
    )
    panel = interval_panel(
        values, "difference in held-out loss (%)", [VARIANTS[variant].what for variant in SHOWN_WIDE]
    )
    save_picture(panel, "Planted ranks: train wide, cut once", detail, path)


def _interval(name: str, series: str, row: Row) -> dict[str, Any]:
    assert row.difference is not None
    return interval(name, series, row.difference, lambda log_ratio: 100 * math.expm1(log_ratio))
