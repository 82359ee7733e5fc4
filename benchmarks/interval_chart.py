"""Pictures of means with their 95 % intervals: a row a variant, a color a series, zero marked."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from glora.experiments.records.store import write_whole
from glora.experiments.report.chart_style import LIGHT, data, png
from glora.experiments.report.statistics import PairedDifference


def interval(row: str, series: str, found: PairedDifference, scale: Callable[[float], float]) -> dict[str, Any]:
    """Return what `interval_panel` draws of a difference."""
    ends = {} if found.low is None or found.high is None else {"low": scale(found.low), "high": scale(found.high)}
    return {"row": row, "series": series, "mean": scale(found.mean), **ends}


def interval_panel(
    rows: Sequence[dict[str, Any]], title: str, series: Sequence[str], width: int = 420
) -> alt.LayerChart:
    """Return a panel; rows in the order in which they come, colors in that of `series`."""
    names = list(dict.fromkeys(row["row"] for row in rows))
    color = alt.Color(
        "series:N",
        title=None,
        scale=alt.Scale(domain=list(series), range=list(LIGHT["series"][: len(series)])),
        legend=alt.Legend(orient="top") if len(series) > 1 else None,
    )
    marks = alt.Chart(data(rows)).encode(
        y=alt.Y("row:N", title=None, sort=names, axis=alt.Axis(labelLimit=420)),
        yOffset=alt.YOffset("series:N", sort=list(series)),
        color=color,
    )
    zero = alt.Chart(data([{"zero": 0}])).mark_rule(strokeWidth=2, color=LIGHT["faint"]).encode(x="zero:Q")
    intervals = marks.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    step = alt.Step(10 if len(series) > 1 else 18, **{"for": "position" if len(series) == 1 else "offset"})
    dots = marks.mark_point(filled=True, size=50, opacity=1).encode(x=alt.X("mean:Q", title=title))
    return alt.layer(zero, intervals, dots).properties(width=width, height=step)


def save_picture(chart: Any, title: str, detail: str, path: Path) -> None:
    """Write the chart as PNG, under its title and how to read it."""
    shown = chart.properties(title=alt.TitleParams(title, subtitle=textwrap.wrap(detail, 110), offset=12))
    write_whole(path, png(shown.to_dict()))
