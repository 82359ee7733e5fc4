"""The charts of a comparison: the metric against time, the rank of every matrix, norms over the warm-up."""

from __future__ import annotations

import math
from typing import Any

import altair as alt

from glora.experiments.number_format import printable
from glora.experiments.report.chart_style import ReportChart, cell_name, data, finished, over_seeds, rounded
from glora.experiments.report.matrix_grid import MatrixGrid, matrix_map
from glora.experiments.report.metric_chart import metric_chart
from glora.experiments.report.norm_chart import norm_chart, same_norms
from glora.experiments.report.summary import GroupSummary, MethodSummary


def charts(group: GroupSummary) -> tuple[ReportChart, ...]:
    """The metric against time, the chosen ranks and the norms over the warm-up, where there is something to see."""
    chosen = [m for m in group.methods if any(len(set(run.ranks.values())) > 1 for run in m.runs)]  # not all the same
    highest = max((rank for method in chosen for rank in mean_ranks(method).values()), default=0.0)
    end = max(math.ceil(highest), group.rank + 1)  # the same colors in all maps of a group
    with_norms: list[MethodSummary] = []
    for method in group.methods:
        if any(run.norms for run in method.runs) and not any(same_norms(method, other) for other in with_norms):
            with_norms.append(method)
    return (
        *metric_chart(group),
        *(_rank_map(group, method, end) for method in chosen),
        *(norm_chart(group, method) for method in with_norms),
    )


def mean_ranks(method: MethodSummary) -> dict[str, float]:
    """Module -> rank at the end, mean over the seeds; where a run names no rank, there is no adapter: 0."""
    modules = dict.fromkeys(name for run in method.runs for name in (*run.initial_ranks, *run.ranks))
    return {module: sum(run.ranks.get(module, 0) for run in method.runs) / len(method.runs) for module in modules}


def _rank_map(group: GroupSummary, method: MethodSummary, highest: int) -> ReportChart:
    """The rank of every matrix, layer × matrix type, with uniform LoRA's rank as the neutral color."""
    grid, rank = matrix_map(mean_ranks(method)), group.rank
    color = alt.Color(
        "rank:Q",
        scale=alt.Scale(
            domain=[0, rank, highest],
            interpolate="lab",
            range=[alt.ExprRef(name) for name in ("less", "neutral", "more")],
        ),
        legend=alt.Legend(gradientLength=150, values=sorted({0, rank / 2, rank, (rank + highest) / 2, highest})),
    )
    types, layers = ([printable(label) for label in labels] for labels in (grid.columns, grid.row_labels))
    cells = alt.Chart(data(_rank_cells(method, grid))).encode(
        x=alt.X("type:N", title="matrix type", sort=types, axis=alt.Axis(labelAngle=-40, grid=False)),
        y=alt.Y("row:N", title=grid.row_title, sort=layers),
        tooltip=[
            alt.Tooltip("matrix:N"),
            alt.Tooltip("text:N", title="rank"),
            alt.Tooltip("seeds:N", title=f"seeds {', '.join(map(str, method.seeds))}"),
        ],
    )
    on_dark = alt.when("luminance(scale('color', datum.rank)) < 0.18")
    written = cells.mark_text(fontSize=11).encode(
        text="text:N", color=on_dark.then(alt.value("#ffffff")).otherwise(alt.value("#000000"))
    )
    chart = alt.layer(cells.mark_rect(stroke=alt.ExprRef("page"), strokeWidth=2).encode(color=color), written)
    chart = chart.properties(width=alt.Step(36), height=alt.Step(26))
    seeds, title = over_seeds(method.seeds), f"Ranks after {method.label}"
    caption = (
        f"The rank of each matrix after {method.label}, {seeds}: the neutral color is the {rank} of uniform LoRA, purple more, "
        "orange less; an empty cell: there is no such matrix."
        + (" A cell of several matrices shows their mean." if grid.merged else "")
    )
    return finished(f"ranks {method.label}", group, title, caption, f"{seeds} · neutral: uniform LoRA's {rank}", chart)


def _rank_cells(method: MethodSummary, grid: MatrixGrid) -> list[dict[str, Any]]:
    """A row a cell of the map: its mean rank, and that of each seed."""
    rows = []
    for (row, column), names in grid.cells.items():
        by_seed = [sum(run.ranks.get(name, 0) for name in names) / len(names) for run in method.runs]
        mean = sum(by_seed) / len(by_seed)
        rows.append(
            {
                "row": printable(grid.row_labels[row]),
                "type": printable(grid.columns[column]),
                "matrix": cell_name(names),
                "rank": rounded(mean),
                "text": _rank_text(mean),
                "seeds": ", ".join(map(_rank_text, by_seed)),
            }
        )
    return rows


def _rank_text(value: float) -> str:
    """`8`, or `8.3` for a mean that is not whole."""
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
