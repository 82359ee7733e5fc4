"""Picture: the primary metric against training time, a line a method, a point a seed."""

from __future__ import annotations

from pathlib import Path

from glora.experiments import picture_style as style
from glora.experiments.number_format import metric_header, metric_name, metric_scale, time_unit
from glora.experiments.records import EpochMetrics, RunRecord
from glora.experiments.statistics import estimate
from glora.experiments.summary import GroupSummary


def evaluations(run: RunRecord, metric: str) -> list[EpochMetrics]:
    """The evaluations of the run's main split that have this metric, in order."""
    secondary = {name.rpartition("/")[0] for name in run.final if "/" in name}
    return [found for found in run.metrics if metric in found.values and found.split not in secondary]


def has_curves(group: GroupSummary) -> bool:
    """Whether any finished run was evaluated on the way."""
    return group.primary_metric is not None and any(evaluations(run, group.primary_metric) for run in group.finished)


def draw_metric_curves(group: GroupSummary, *, detail: str, path: Path) -> str:
    """Draw the metric over the seconds of training and return the caption.

    Args:
        group: a group with evaluations.
        detail: of which runs, for the heading.
        path: where the PNG goes.
    """
    metric = group.primary_metric
    assert metric is not None, "has_curves() says whether there is a metric to draw"
    scale, _ = metric_scale(metric)
    longest = max(found.train_seconds for run in group.finished for found in evaluations(run, metric))
    seconds, time_name = time_unit(longest)
    looks = style.method_styles([method.label for method in group.methods])

    what = f"{metric_name(metric)} against training time"
    several = any(len(method.runs) > 1 for method in group.methods)
    if several:
        detail += "\nleft: during training, lines join the means · right: at the end, mean ± standard deviation"
    with style.picture(path, what=what, detail=detail, size=(9.5, 3.9) if several else (7, 3.9)) as figure:
        ratios = (1.5, 1) if several else (1,)
        course, *rest = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        for method in group.methods:
            colour, marker = looks[method.label]
            marks = {"color": colour, "marker": marker, "edgecolors": "white", "linewidths": 0.7, "zorder": 3}
            by_step: dict[int, list[tuple[float, float]]] = {}
            for run in method.runs:
                for found in evaluations(run, metric):
                    point = found.train_seconds / seconds, found.values[metric] * scale
                    by_step.setdefault(found.step, []).append(point)
            if not by_step:
                continue
            stages = [by_step[step] for step in sorted(by_step)]
            means = [_mean_point(points) for points in stages]
            course.plot(*zip(*means), color=colour, linewidth=2, zorder=2)
            course.scatter(*zip(*(point for points in stages for point in points)), s=36, **marks)
            label = f"{method.label} (n = {len(method.runs)})"
            course.plot([], [], color=colour, marker=marker, linewidth=2, markeredgecolor="white", label=label)

            for end in rest:
                end.scatter(*zip(*stages[-1]), s=36, **marks)
                times, values = zip(*stages[-1])
                spread = {"xerr": estimate(times).sd, "yerr": estimate(values).sd}
                end.errorbar(*means[-1], **spread, color=colour, linewidth=2, capsize=4, zorder=2)
        course.set_xlim(left=0)
        course.set_ylabel(metric_header(metric), fontsize=11)
        course.legend(frameon=False, fontsize=10.5)
        for axes in (course, *rest):
            style.plain_axes(axes)
        for end in rest:
            end.margins(0.15)
        figure.supxlabel(f"training time in {time_name}, evaluation not counted", fontsize=11)

    return (
        f"{metric_name(metric)} after each evaluation against the {time_name} of training until then, each mark a run"
        + ("; lines join the means over seeds, crosses show mean ± standard deviation at the end." if several else ".")
    )


def _mean_point(points: list[tuple[float, float]]) -> tuple[float, float]:
    times, values = zip(*points)
    return sum(times) / len(points), sum(values) / len(points)
