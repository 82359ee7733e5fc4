"""What the interactive charts of report.html are drawn from: the charts of the pictures, as JSON of a bounded size.

Nothing is worked out here; numbers are rounded to what a screen can show, and long curves are thinned.
"""

from __future__ import annotations

import math
from typing import Any

from glora.experiments.report.metric_curves import MetricCurves
from glora.experiments.report.norm_curves import NormCurves
from glora.experiments.report.picture_style import OKABE_ITO
from glora.experiments.report.pictures import Charts
from glora.experiments.report.rank_map import RankMap, rank_text

MAX_STEPS = 120
MAX_NUMBERS = 60_000
"""Steps and numbers of the norm curves of one method; some 400 kB at most."""


def chart_data(charts: Charts) -> dict[str, Any]:
    """The charts of a group for JSON; what is not a finite number is null."""
    return {
        "metric": None if charts.metric is None else _metric(charts.metric),
        "ranks": [_ranks(shown) for shown in charts.ranks],
        "norms": [_norms(shown) for shown in charts.norms],
    }


def _metric(shown: MetricCurves) -> dict[str, Any]:
    return {
        "title": shown.title,
        "x": f"training time in {shown.time_name}, evaluation not counted",
        "y": shown.header,
        "unit": shown.time_name,
        "curves": [
            {
                "label": curve.label,
                "series": OKABE_ITO.index(curve.colour),
                "marker": curve.marker,
                "seeds": curve.seeds,
                "stages": [
                    {
                        "epoch": _rounded(stage.epoch),
                        "mean": _all_rounded(stage.mean),
                        "points": [[seed, _rounded(time), _rounded(value)] for seed, time, value in stage.points],
                    }
                    for stage in curve.stages
                ],
            }
            for curve in shown.curves
        ],
    }


def _ranks(shown: RankMap) -> dict[str, Any]:
    return {
        "title": shown.title,
        "rowTitle": shown.grid.row_title,
        "rows": shown.grid.row_labels,
        "columns": shown.grid.columns,
        "uniform": shown.uniform_rank,
        "highest": shown.highest,
        "seeds": shown.method.seeds,
        "cells": [
            {
                "at": cell,
                "rank": _rounded(rank),
                "text": rank_text(rank),
                "bySeed": [rank_text(value) for value in shown.by_seed[cell]],
                "name": shown.grid.cells[cell][0],
                "matrices": len(shown.grid.cells[cell]),
            }
            for cell, rank in sorted(shown.ranks.items())
        ],
    }


def _norms(shown: NormCurves) -> dict[str, Any]:
    lines = len(shown.names)
    most = min(MAX_STEPS, max(12, MAX_NUMBERS // max(lines, 1)))
    last = len(shown.steps) - 1
    kept = list(range(last, -1, -math.ceil(len(shown.steps) / most)))[::-1]  # the last step stays
    return {
        "title": shown.title,
        "steps": [shown.steps[i] for i in kept],
        "names": shown.names,
        "values": [_all_rounded(shown.values[kept, line]) for line in range(lines)],
        "panels": [
            {"title": panel.title, "lines": panel.lines, "median": _all_rounded(panel.median[kept])}
            for panel in shown.panels
        ],
        "logarithmic": shown.logarithmic,
    }


def _all_rounded(values: Any) -> list[float | None]:
    return [_rounded(float(value)) for value in values]


def _rounded(value: float) -> float | None:
    """Four significant digits; None for what JSON has no number for."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
