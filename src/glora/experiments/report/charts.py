"""The charts of a comparison, each defined once in Altair: the metric against time, rank maps, norms over the warm-up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from glora.experiments.data.metric import Metric
from glora.experiments.number_format import printable, time_unit
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.report.cells import COUNT, Quantity, ReportTable, Unit
from glora.experiments.report.chart_style import ReportChart, data, finished, method_styles, pointed_mark, rounded
from glora.experiments.report.matrix_grid import matrix_grid, matrix_map
from glora.experiments.report.statistics import estimate
from glora.experiments.report.summary import GroupSummary, MethodSummary
from glora.messages import pluralize

MAX_LINES, MAX_PANELS, MAX_STEPS, MAX_GREY = 400, 12, 60, 60
"""Limits of a chart of norms: lines, matrix types, steps, and lines in grey behind each panel."""
LOG_SCALE_FROM = 8.0
"""Ratio of the largest to the smallest norm from which their axis is logarithmic."""


def charts(group: GroupSummary) -> tuple[ReportChart, ...]:
    """The metric against time, the chosen ranks and the norms over the warm-up, where there is something to see."""
    chosen = [method for method in group.methods if has_chosen_ranks(method)]
    highest = max((rank for method in chosen for rank in mean_ranks(method).values()), default=0.0)
    end = max(math.ceil(highest), group.rank + 1)  # the same colors in all maps of a group
    with_norms: list[MethodSummary] = []
    for method in group.methods:
        if any(run.norms for run in method.runs) and not any(same_norms(method, other) for other in with_norms):
            with_norms.append(method)
    return (
        *_metric_chart(group),
        *(_rank_map(group, method, end) for method in chosen),
        *(_norm_chart(group, method) for method in with_norms),
    )


def evaluations(run: RunRecord, metric: Metric) -> list[EpochMetrics]:
    """The evaluations of the run's main split that have this metric, in order."""
    return [found for found in run.metrics if found.split == run.main_split and metric.name in found.values]


def mean_ranks(method: MethodSummary) -> dict[str, float]:
    """Module -> rank at the end, mean over the seeds; where a run names no rank, there is no adapter: 0."""
    modules = dict.fromkeys(name for run in method.runs for name in (*run.initial_ranks, *run.ranks))
    return {module: sum(run.ranks.get(module, 0) for run in method.runs) / len(method.runs) for module in modules}


def has_chosen_ranks(method: MethodSummary) -> bool:
    """Return True if the ranks of some run differ, so that there is something to see."""
    return any(len(set(run.ranks.values())) > 1 for run in method.runs)


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


def _metric_chart(group: GroupSummary) -> list[ReportChart]:
    """The primary metric against training time: a mark a run, lines through the means of each method."""
    metric = group.primary_metric
    found = [(row, [evaluations(run, metric) for run in row.runs]) for row in group.methods] if metric else []
    seconds = [evaluation.train_seconds for _, runs in found for run in runs for evaluation in run]
    if metric is None or not seconds:
        return []
    divisor, unit = time_unit(max(seconds))
    points, means, spreads = [], [], []
    for method, runs in found:
        name = printable(f"{method.label} (n = {len(method.runs)})")
        stages: dict[int, list[dict[str, Any]]] = {}
        for record, run in zip(method.runs, runs):
            for at in run:
                point = {
                    "time": at.train_seconds / divisor,
                    "value": at.values[metric.name] * metric.scale,
                    "epoch": at.epoch,
                }
                stages.setdefault(at.step, []).append({"method": name, "seed": str(record.config.seed), **point})
        for _, stage in sorted(stages.items()):
            points += [{**point, "time": rounded(point["time"]), "value": rounded(point["value"])} for point in stage]
            time, value = (estimate([point[of] for point in stage]) for of in ("time", "value"))
            means.append({"method": name, "time": rounded(time.mean), "value": rounded(value.mean)})
        if stages and value.sd:
            at_end = {"low": rounded(value.mean - value.sd), "high": rounded(value.mean + value.sd)}
            spreads.append({**means[-1], **at_end})
    styles = method_styles([method.label for method in group.methods])
    shown = dict.fromkeys(point["method"] for point in points)
    shown_styles = [styles[m.label] for m in group.methods if printable(f"{m.label} (n = {len(m.runs)})") in shown]
    chosen = alt.selection_point(name="chosen", fields=["method"], bind="legend", toggle="true")
    pointed = pointed_mark()
    color = alt.Color(
        "method:N",
        title=None,
        scale=alt.Scale(domain=list(shown), range=[alt.ExprRef(f"series{series}") for series, _ in shown_styles]),
        legend=alt.Legend(orient="top", offset=4),
    )
    faded = alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.08))
    # Vega-Lite writes the titles of fields into expressions, where it escapes neither of the two.
    header = printable(metric.header).translate(str.maketrans('\\"', "/'"))
    x = alt.X(
        "time:Q",
        title=f"training time in {unit}, evaluation not counted",
        axis=alt.Axis(tickCount=8),
        scale=alt.Scale(zero=True),
    )
    y = alt.Y("value:Q", title=header, scale=alt.Scale(zero=False, padding=12))
    looks = {"x": x, "color": color, "opacity": faded}
    line = alt.Chart(data(means)).mark_line(strokeWidth=2).encode(y=y, **looks).add_params(chosen)
    spread = (
        alt.Chart(data(spreads))
        .mark_rule(strokeWidth=1.5)
        .encode(alt.Y("low:Q", title=header), alt.Y2("high:Q"), **looks)
    )
    runs = (
        alt.Chart(data(points))
        .mark_point(filled=True, opacity=1, stroke=alt.ExprRef("page"), strokeWidth=0.7)
        .encode(
            y=y,
            **looks,
            size=alt.when(pointed).then(alt.value(190)).otherwise(alt.value(70)),
            shape=alt.Shape(
                "method:N",
                title=None,
                scale=alt.Scale(domain=list(shown), range=[marker for _, marker in shown_styles]),
            ),
            tooltip=[
                alt.Tooltip("method:N"),
                alt.Tooltip("seed:N"),
                alt.Tooltip("value:Q", title=header, format=".4~g"),
                alt.Tooltip("time:Q", title=unit, format=".4~g"),
                alt.Tooltip("epoch:Q", format=".4~g"),
            ],
        )
        .add_params(pointed)
    )
    chart = alt.layer(line, spread, runs).properties(width=640, height=340, usermeta={"fit": True})
    title = f"{metric.label} against training time"
    how = "; lines join the means over seeds, bars show the standard deviation at the end." if spreads else "."
    caption = f"{metric.label} after each evaluation against the {unit} of training until then, each mark a run{how}"
    return [finished("time", group, title, caption, "", chart)]


def _rank_map(group: GroupSummary, method: MethodSummary, highest: int) -> ReportChart:
    """The rank of every matrix, layer × matrix type, with uniform LoRA's rank as the neutral color."""
    ranks, rank = mean_ranks(method), group.rank
    grid = matrix_map(ranks)
    rows = []
    for (row, column), names in grid.cells.items():
        by_seed = [sum(run.ranks.get(name, 0) for name in names) / len(names) for run in method.runs]
        mean = sum(ranks[name] for name in names) / len(names)
        place = {"row": printable(grid.row_labels[row]), "type": printable(grid.columns[column])}
        rows.append(
            {
                **place,
                "matrix": _cell_name(names),
                "rank": rounded(mean),
                "text": _rank_text(mean),
                "seeds": ", ".join(map(_rank_text, by_seed)),
            }
        )
    color = alt.Color(
        "rank:Q",
        scale=alt.Scale(
            domain=[0, rank, highest],
            interpolate="lab",
            range=[alt.ExprRef(name) for name in ("less", "neutral", "more")],
        ),
        legend=alt.Legend(gradientLength=150, values=sorted({0, rank / 2, rank, (rank + highest) / 2, highest})),
    )
    cells = alt.Chart(data(rows)).encode(
        x=alt.X(
            "type:N",
            title=None,
            sort=[printable(name) for name in grid.columns],
            axis=alt.Axis(labelAngle=-40, grid=False),
        ),
        y=alt.Y("row:N", title=grid.row_title, sort=[printable(label) for label in grid.row_labels]),
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
    seeds, title = _over_seeds(method.seeds), f"Ranks after {method.label}"
    caption = (
        f"The rank of each matrix after {method.label}, {seeds}: the neutral color is the {rank} of uniform LoRA, purple more, "
        "orange less; an empty cell: there is no such matrix."
        + (" A cell that stands for several matrices shows their mean." if grid.merged else "")
    )
    return finished(f"ranks {method.label}", group, title, caption, f"{seeds} · neutral: uniform LoRA's {rank}", chart)


def _norm_chart(group: GroupSummary, method: MethodSummary) -> ReportChart:
    """The averaged gradient norms over the warm-up, a panel a matrix type: its own matrices in color, all others in grey."""
    seeds, steps, modules, norms = _mean_over_seeds([run for run in method.runs if run.norms])
    merged = len(modules) > MAX_LINES
    grid = matrix_map(modules, max_rows=MAX_LINES // 24) if merged else matrix_grid(modules)
    position = {name: i for i, name in enumerate(modules)}
    last_row = max(len(grid.row_labels) - 1, 1)
    lines: list[dict[str, Any]] = []
    for (row, column), names in sorted(grid.cells.items()):
        shared = {"type": printable(grid.columns[column]), "depth": round(row / last_row, 3), "step": steps}
        split = [names] if merged else [(name,) for name in names]
        for some in split:
            values = norms[:, [position[name] for name in some]].mean(axis=1)
            lines.append({"matrix": _cell_name(some), **shared, "norm": [rounded(value) for value in values]})
    types = list(dict.fromkeys(printable(name) for name in grid.columns))
    largest = sorted(types, key=lambda name: -max((line["norm"][-1] or 0) for line in lines if line["type"] == name))
    panels = [name for name in types if name in largest[:MAX_PANELS]]
    seen = [value for line in lines for value in line["norm"] if value is not None and value > 0]
    logarithmic = bool(seen) and max(seen) > LOG_SCALE_FROM * min(seen)
    pointed = pointed_mark()
    ticks = [digit * 10.0**power for power in range(-12, 12) for digit in (1, 3)]
    axis = {"values": [tick for tick in ticks if min(seen) <= tick <= max(seen)]} if logarithmic else {"tickCount": 4}
    x = alt.X("step:Q", title="optimizer step of the warm-up", axis=alt.Axis(tickCount=4, format="d"))
    y = alt.Y(
        "norm:Q",
        title="gradient norm" + (", log scale" if logarithmic else ""),
        scale=alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=True, nice=False),
        axis=alt.Axis(**axis, format="~g"),
    )
    dots = len(steps) == 1
    depth = alt.Color(
        "depth:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[alt.ExprRef("first"), alt.ExprRef("last")])
    )
    behind = [{"step": line["step"], "norm": line["norm"], "matrix": line["matrix"]} for line in lines]
    grey = (
        alt.Chart(data(behind[:: math.ceil(len(lines) / MAX_GREY)]))
        .transform_flatten(["step", "norm"])
        .mark_line(strokeWidth=0.5, point=dots, opacity=0.6, color=alt.ExprRef("faint"))
        .encode(x=x, y=y, detail="matrix:N")
    )
    own = alt.Chart().mark_line(strokeWidth=1.2, point=dots).encode(x=x, y=y, detail="matrix:N", color=depth)
    median = alt.Chart().mark_line(strokeWidth=2.2, color=alt.ExprRef("ink")).encode(x=x, y=alt.Y("median(norm):Q"))
    points = (
        alt.Chart()
        .mark_point(filled=True, color=alt.ExprRef("ink"))
        .encode(
            x=x,
            y=y,
            opacity=alt.when(pointed).then(alt.value(1)).otherwise(alt.value(0)),
            size=alt.when(pointed).then(alt.value(25)).otherwise(alt.value(100)),
            tooltip=[alt.Tooltip("matrix:N"), alt.Tooltip("step:Q"), alt.Tooltip("norm:Q", format=".4~g")],
        )
        .add_params(pointed)
    )
    shown = data([line for line in lines if line["type"] in panels])
    chart = (
        alt.layer(grey, own, median, points, data=shown)
        .transform_flatten(["step", "norm"])
        .properties(width=230, height=150)
        .facet(alt.Facet("type:N", title=None, sort=panels), columns=3 if len(panels) != 4 else 2)
    )
    beta = method.runs[0].config.allocation.beta
    averaged, title = _over_seeds(seeds), f"Gradient norms over the warm-up of {method.label}"
    caption = (
        f"Gradient norm of each matrix over the warm-up of {method.label}, {averaged}: in color the matrices of the panel's "
        "type, pale for the first layer to strong for the last, the thick line their median, in grey all other matrices. The "
        f"norm is an exponential moving average (beta = {beta:g}) that starts at zero; shown is "
        "g / (1 - beta^t), which takes the rise from zero out of it."
        + (
            f" Shown are the {MAX_PANELS} matrix types with the largest norms, of {len(types)}."
            if len(types) > MAX_PANELS
            else ""
        )
        + (" There are many matrices: a line is the mean of neighbouring ones." if merged else "")
    )
    how = f"{averaged} · pale: first layer, strong: last, thick: median, grey: all others"
    of_type: dict[str, list[int]] = {}
    for (_, column), names in sorted(grid.cells.items(), key=lambda cell: cell[0][1]):
        of_type.setdefault(grid.columns[column], []).extend(position[name] for name in names)
    values = _norm_table(steps, {name: norms[:, columns] for name, columns in of_type.items()})
    return finished(f"norms {method.label}", group, title, caption, how, chart, values)


def _norm_table(steps: Sequence[int], norms: Mapping[str, Any]) -> ReportTable:
    """The norms of each matrix type (steps × matrices) as numbers."""
    largest = max((float(of_type.max()) for of_type in norms.values()), default=0.0)
    digits = 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
    unit = Unit(decimals=min(max(digits, 0), 12))
    return ReportTable(
        f"Norms by matrix type, after step {steps[-1]}",
        ("matrix type", "matrices", "smallest", "median", "largest", f"median after step {steps[0]}"),
        tuple(
            (
                name,
                Quantity(of_type.shape[1], COUNT),
                *(Quantity(float(find(of_type[-1])), unit) for find in (np.min, np.median, np.max)),
                Quantity(float(np.median(of_type[0])), unit),
            )
            for name, of_type in norms.items()
        ),
    )


def _mean_over_seeds(runs: list[RunRecord]) -> tuple[tuple[int, ...], list[int], list[str], Any]:
    """Seeds, steps, modules and the array of corrected norms (steps × modules), over what all runs have in common."""
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
    return seeds, steps, modules, values.mean(axis=0)


def _cell_name(names: Sequence[str]) -> str:
    return printable(names[0] if len(names) == 1 else f"{pluralize(len(names), 'matrix')} from {names[0]}")


def _over_seeds(seeds: Sequence[int]) -> str:
    return f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"


def _rank_text(value: float) -> str:
    """`8`, or `8.3` for a mean that is not whole."""
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
