"""The chart of the gradient norms over a warm-up: a panel a matrix type, a line a matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from glora.experiments.number_format import printable
from glora.experiments.records.schema import RunRecord
from glora.experiments.report.cells import COUNT, Quantity, ReportTable, Unit
from glora.experiments.report.chart_style import (
    ReportChart,
    cell_name,
    data,
    finished,
    over_seeds,
    pointed_mark,
    rounded,
)
from glora.experiments.report.matrix_grid import MatrixGrid, matrix_grid, matrix_map
from glora.experiments.report.summary import GroupSummary, MethodSummary

MAX_LINES, MAX_PANELS, MAX_STEPS, MAX_GREY = 400, 12, 60, 60
"""Limits of the chart: lines, matrix types, steps, and lines in grey behind each panel."""
LOG_SCALE_FROM = 8.0
"""Ratio of the largest to the smallest norm from which their axis is logarithmic."""


@dataclass(frozen=True)
class _Norms:
    """Corrected norms (steps × modules), mean over the seeds, of what all runs have in common.

    Attributes:
        columns: module -> its column in `values`.
    """

    seeds: tuple[int, ...]
    steps: list[int]
    columns: dict[str, int]
    values: Any

    def of(self, modules: Sequence[str]) -> Any:
        """Return the columns of some modules."""
        return self.values[:, [self.columns[name] for name in modules]]


def corrected_norms(run: RunRecord) -> dict[int, dict[str, float]]:
    """Step t -> module k -> g_k / (1 - beta^t).

    The recorded g_k is an average that starts at zero, so after t steps it is too small by the factor 1 - beta^t (Kingma and Ba
    2015, section 3). Uncorrected, every curve would rise in a way that no gradient did.
    """
    beta = run.config.allocation.beta
    return {
        sample.step: {module: value / (1 - beta**sample.step) for module, value in sample.values.items()}
        for sample in run.norms
    }


def same_norms(method: MethodSummary, other: MethodSummary) -> bool:
    """Return True if two rows ended their warm-up alike, so that one chart serves both (as for a control)."""
    ours, theirs = ({run.config.seed: run.norms[-1] for run in row.runs if run.norms} for row in (method, other))
    return ours.keys() == theirs.keys() and all(
        sample.step == theirs[seed].step
        and sample.values.keys() == theirs[seed].values.keys()
        and all(math.isclose(norm, theirs[seed].values[k], rel_tol=1e-3) for k, norm in sample.values.items())
        for seed, sample in ours.items()
    )


def norm_chart(group: GroupSummary, method: MethodSummary) -> ReportChart:
    """The averaged gradient norms over the warm-up, a panel a matrix type: its own matrices in color, all others in grey."""
    norms = _mean_over_seeds([run for run in method.runs if run.norms])
    merged = len(norms.columns) > MAX_LINES
    grid = matrix_map(norms.columns, max_rows=MAX_LINES // 24) if merged else matrix_grid(norms.columns)
    lines = _lines(norms, grid, merged)
    types = list(dict.fromkeys(printable(name) for name in grid.columns))
    largest = sorted(types, key=lambda name: -max((line["norm"][-1] or 0) for line in lines if line["type"] == name))
    panels = [name for name in types if name in largest[:MAX_PANELS]]
    averaged, beta = over_seeds(norms.seeds), method.runs[0].config.allocation.beta
    caption = (
        f"Gradient norm of each matrix over the warm-up of {method.label}, {averaged}: in color the matrices of the panel's "
        "type, pale for the first layer to strong for the last, the thick line their median, in grey all other matrices. The "
        f"norm is an exponential moving average (beta = {beta:g}) that starts at zero; shown is "
        "g / (1 - beta^t), which takes the rise from zero out of it."
    )
    if len(types) > MAX_PANELS:
        caption += f" Shown are the {MAX_PANELS} matrix types with the largest norms, of {len(types)}."
    if merged:
        caption += " There are many matrices: a line is the mean of neighbouring ones."
    return finished(
        f"norms {method.label}",
        group,
        f"Gradient norms over the warm-up of {method.label}",
        caption,
        f"{averaged} · pale: first layer, strong: last, thick: median, grey: all others",
        _chart(lines, panels),
        _norm_table(norms, grid),
    )


def _lines(norms: _Norms, grid: MatrixGrid, merged: bool) -> list[dict[str, Any]]:
    """A line a matrix, or a cell of the grid where matrices are merged: its type, its depth from 0 to 1, and its norms."""
    lines: list[dict[str, Any]] = []
    last_row = max(len(grid.row_labels) - 1, 1)
    for (row, column), names in sorted(grid.cells.items()):
        place = {"type": printable(grid.columns[column]), "depth": round(row / last_row, 3), "step": norms.steps}
        for some in [names] if merged else [(name,) for name in names]:
            values = norms.of(some).mean(axis=1)
            lines.append({"matrix": cell_name(some), **place, "norm": [rounded(value) for value in values]})
    return lines


def _axes(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Steps and norms, on a logarithmic scale where the norms differ by more than LOG_SCALE_FROM."""
    seen = [value for line in lines for value in line["norm"] if value is not None and value > 0]
    logarithmic = bool(seen) and max(seen) > LOG_SCALE_FROM * min(seen)
    ticks = [digit * 10.0**power for power in range(-12, 12) for digit in (1, 3)]
    axis = {"values": [tick for tick in ticks if min(seen) <= tick <= max(seen)]} if logarithmic else {"tickCount": 4}
    return {
        "x": alt.X("step:Q", title="optimizer step of the warm-up", axis=alt.Axis(tickCount=4, format="d")),
        "y": alt.Y(
            "norm:Q",
            title="gradient norm" + (", log scale" if logarithmic else ""),
            scale=alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=True, nice=False),
            axis=alt.Axis(**axis, format="~g"),
        ),
    }


def _chart(lines: Sequence[dict[str, Any]], panels: Sequence[str]) -> Any:
    """A panel a matrix type, with all lines in grey behind its own, their median, and the values under the pointer."""
    axes, pointed = _axes(lines), pointed_mark()
    dots = len(lines[0]["step"]) == 1
    depth = alt.Color(
        "depth:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[alt.ExprRef("first"), alt.ExprRef("last")])
    )
    behind = [{name: line[name] for name in ("step", "norm", "matrix")} for line in lines]
    grey = (
        alt.Chart(data(behind[:: math.ceil(len(lines) / MAX_GREY)]))
        .transform_flatten(["step", "norm"])
        .mark_line(strokeWidth=0.5, point=dots, opacity=0.6, color=alt.ExprRef("faint"))
        .encode(**axes, detail="matrix:N")
    )
    own = alt.Chart().mark_line(strokeWidth=1.2, point=dots).encode(**axes, detail="matrix:N", color=depth)
    median = alt.Chart().mark_line(strokeWidth=2.2, color=alt.ExprRef("ink"))
    points = (
        alt.Chart()
        .mark_point(filled=True, color=alt.ExprRef("ink"))
        .encode(
            **axes,
            opacity=alt.when(pointed).then(alt.value(1)).otherwise(alt.value(0)),
            size=alt.when(pointed).then(alt.value(25)).otherwise(alt.value(100)),
            tooltip=[alt.Tooltip("matrix:N"), alt.Tooltip("step:Q"), alt.Tooltip("norm:Q", format=".4~g")],
        )
        .add_params(pointed)
    )
    layers = (grey, own, median.encode(x=axes["x"], y=alt.Y("median(norm):Q")), points)
    return (
        alt.layer(*layers, data=data([line for line in lines if line["type"] in panels]))
        .transform_flatten(["step", "norm"])
        .properties(width=230, height=150)
        .facet(alt.Facet("type:N", title=None, sort=list(panels)), columns=3 if len(panels) != 4 else 2)
    )


def _norm_table(norms: _Norms, grid: MatrixGrid) -> ReportTable:
    """The norms of each matrix type as numbers."""
    types: dict[str, list[str]] = {}
    for (_, column), names in sorted(grid.cells.items(), key=lambda cell: cell[0][1]):
        types.setdefault(grid.columns[column], []).extend(names)
    largest = max((float(norms.of(names).max()) for names in types.values()), default=0.0)
    digits = 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
    unit = Unit(decimals=min(max(digits, 0), 12))

    def row(name: str, values: Any) -> tuple[str | Quantity, ...]:
        last = [Quantity(float(find(values[-1])), unit) for find in (np.min, np.median, np.max)]
        return (name, Quantity(values.shape[1], COUNT), *last, Quantity(float(np.median(values[0])), unit))

    return ReportTable(
        f"Norms by matrix type, after step {norms.steps[-1]}",
        ("matrix type", "matrices", "smallest", "median", "largest", f"median after step {norms.steps[0]}"),
        tuple(row(name, norms.of(names)) for name, names in types.items()),
    )


def _mean_over_seeds(runs: list[RunRecord]) -> _Norms:
    corrected = [corrected_norms(run) for run in runs]
    seeds = tuple(run.config.seed for run in runs)
    steps = sorted(set(corrected[0]).intersection(*corrected[1:]))
    if not steps:  # other seeds were sampled at other steps: one seed is better than none
        corrected, seeds = corrected[:1], seeds[:1]
        steps = sorted(corrected[0])
    steps = steps[len(steps) - 1 :: -math.ceil(len(steps) / MAX_STEPS)][::-1]  # the last step stays
    samples = [norms[step] for norms in corrected for step in steps]
    modules = [name for name in samples[0] if all(name in sample for sample in samples)]
    values = np.array([[[norms[step][name] for name in modules] for step in steps] for norms in corrected])
    return _Norms(seeds, steps, {name: i for i, name in enumerate(modules)}, values.mean(axis=0))
