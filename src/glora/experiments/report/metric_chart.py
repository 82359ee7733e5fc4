"""The chart of the primary metric against training time, with a mark for each evaluation of each run."""

from __future__ import annotations

from typing import Any

import altair as alt

from glora.experiments.data.metric import Metric
from glora.experiments.number_format import printable, time_unit
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.report.chart_style import ReportChart, data, finished, method_styles, pointed_mark, rounded
from glora.experiments.report.statistics import estimate
from glora.experiments.report.summary import GroupSummary, MethodSummary

Row = dict[str, Any]


def evaluations(run: RunRecord, metric: Metric) -> list[EpochMetrics]:
    """The evaluations of the run's main split that have this metric, in order."""
    return [found for found in run.metrics if found.split == run.main_split and metric.name in found.values]


def metric_chart(group: GroupSummary) -> list[ReportChart]:
    """The primary metric against training time: a mark a run, lines through the means of each method."""
    metric = group.primary_metric
    seconds = [at.train_seconds for run in group.finished for at in evaluations(run, metric)] if metric else []
    if metric is None or not seconds:
        return []
    divisor, unit = time_unit(max(seconds))
    points, means, spreads = _curves(group, metric, divisor)
    bars = "bars show the standard deviation at the end."
    lines = "lines join the means over seeds, " if len(means) > len(group.methods) else ""
    how = f"; {lines}{bars}" if spreads else "."
    caption = f"{metric.label} after each evaluation against the {unit} of training until then, each mark a run{how}"
    chart = _layers(group, points, means, spreads, metric, unit)
    chart = chart.properties(width=640, height=340, usermeta={"fit": True})
    return [finished("time", group, f"{metric.label} against training time", caption, "", chart)]


def _curves(group: GroupSummary, metric: Metric, seconds: float) -> tuple[list[Row], list[Row], list[Row]]:
    """A point for each evaluation, their means over seeds, and each method's spread at the end; times in units of seconds."""
    points, means, spreads = [], [], []
    for method in group.methods:
        stages: dict[int, list[Row]] = {}
        for run in method.runs:
            for at in evaluations(run, metric):
                point = {"time": at.train_seconds / seconds, "value": at.values[metric.name] * metric.scale}
                row = {"method": _name(method), "seed": str(run.config.seed), **point, "epoch": at.epoch}
                stages.setdefault(at.step, []).append(row)
        for _, stage in sorted(stages.items()):
            points += [{**row, "time": rounded(row["time"]), "value": rounded(row["value"])} for row in stage]
            time, value = (estimate([row[of] for row in stage]) for of in ("time", "value"))
            means.append({"method": _name(method), "time": rounded(time.mean), "value": rounded(value.mean)})
        if stages and value.sd:
            ends = {"low": rounded(value.mean - value.sd), "high": rounded(value.mean + value.sd)}
            spreads.append({**means[-1], **ends})
    return points, means, spreads


def _layers(
    group: GroupSummary, points: list[Row], means: list[Row], spreads: list[Row], metric: Metric, unit: str
) -> Any:
    """Means as lines, spreads as bars, runs as marks; the legend chooses methods."""
    styles = method_styles([method.label for method in group.methods])
    drawn = {row["method"] for row in points}
    shown = {_name(method): styles[method.label] for method in group.methods if _name(method) in drawn}
    chosen = alt.selection_point(name="chosen", fields=["method"], bind="legend", toggle="true")
    # Vega-Lite writes the titles of fields into expressions, where it escapes neither of the two.
    header = printable(metric.header).translate(str.maketrans('\\"', "/'"))
    y = alt.Y("value:Q", title=header, scale=alt.Scale(zero=False, padding=12))
    looks: Row = {
        "x": alt.X(
            "time:Q",
            title=f"training time in {unit}, evaluation not counted",
            axis=alt.Axis(tickCount=8),
            scale=alt.Scale(zero=True),
        ),
        "color": alt.Color(
            "method:N",
            title=None,
            scale=alt.Scale(domain=list(shown), range=[alt.ExprRef(f"series{series}") for series, _ in shown.values()]),
            legend=alt.Legend(orient="top", offset=4),
        ),
        "opacity": alt.when(chosen).then(alt.value(1)).otherwise(alt.value(0.08)),
    }
    line = alt.Chart(data(means)).mark_line(strokeWidth=2).encode(y=y, **looks).add_params(chosen)
    low, high = alt.Y("low:Q", title=header), alt.Y2("high:Q")
    spread = alt.Chart(data(spreads)).mark_rule(strokeWidth=1.5).encode(low, high, **looks)
    shape = alt.Shape(
        "method:N", title=None, scale=alt.Scale(domain=list(shown), range=[marker for _, marker in shown.values()])
    )
    return alt.layer(line, spread, _marks(points, header, unit).encode(y=y, shape=shape, **looks))


def _marks(points: list[Row], header: str, unit: str) -> alt.Chart:
    """The runs, with their values under the pointer."""
    pointed = pointed_mark()
    return (
        alt.Chart(data(points))
        .mark_point(filled=True, opacity=1, stroke=alt.ExprRef("page"), strokeWidth=0.7)
        .encode(
            size=alt.when(pointed).then(alt.value(190)).otherwise(alt.value(70)),
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


def _name(method: MethodSummary) -> str:
    return printable(f"{method.label} (n = {len(method.runs)})")
