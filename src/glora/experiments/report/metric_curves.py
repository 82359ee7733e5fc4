"""Picture: the primary metric against training time, a line a method, a point a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.report import picture_style as style
from glora.experiments.report.number_format import metric_header, metric_name, metric_scale, time_unit
from glora.experiments.report.statistics import estimate
from glora.experiments.report.summary import GroupSummary


@dataclass(frozen=True)
class Stage:
    """All seeds of a method at one step: (seed, time, value) of each, and the mean time and value."""

    epoch: float
    points: tuple[tuple[int, float, float], ...]
    mean: tuple[float, float]


@dataclass(frozen=True)
class MetricCurve:
    """One method: its look and its evaluations, in order."""

    label: str
    colour: str
    marker: str
    seeds: int
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class MetricCurves:
    """The primary metric of a group against training time, as it is shown.

    Attributes:
        metric: the metric's name.
        header: its name and unit.
        time_name: the unit of the times, "seconds", "minutes" or "hours".
        curves: one a method that was evaluated.
        several: whether a method has several seeds.
    """

    metric: str
    header: str
    time_name: str
    curves: tuple[MetricCurve, ...]
    several: bool

    @property
    def title(self) -> str:
        """What is seen."""
        return f"{metric_name(self.metric)} against training time"

    @property
    def caption(self) -> str:
        """How to read it."""
        return (
            f"{metric_name(self.metric)} after each evaluation against the {self.time_name} of training until then, each "
            "mark a run" + ("; lines join the means over seeds." if self.several else ".")
        )


def metric_curves(group: GroupSummary) -> MetricCurves | None:
    """The curves of a group; None if no finished run was evaluated on the way."""
    metric = group.primary_metric
    if metric is None or not any(evaluations(run, metric) for run in group.finished):
        return None
    scale, _ = metric_scale(metric)
    longest = max(found.train_seconds for run in group.finished for found in evaluations(run, metric))
    seconds, time_name = time_unit(longest)
    looks = style.method_styles([method.label for method in group.methods])
    curves = []
    for method in group.methods:
        by_step: dict[int, list[tuple[float, int, float, float]]] = {}
        for run in method.runs:
            for found in evaluations(run, metric):
                point = found.epoch, run.config.seed, found.train_seconds / seconds, found.values[metric] * scale
                by_step.setdefault(found.step, []).append(point)
        stages = tuple(
            Stage(
                there[0][0],
                tuple((seed, time, value) for _, seed, time, value in there),
                (sum(time for _, _, time, _ in there) / len(there), sum(value for *_, value in there) / len(there)),
            )
            for _, there in sorted(by_step.items())
        )
        if stages:
            curves.append(MetricCurve(method.label, *looks[method.label], len(method.runs), stages))
    several = any(len(method.runs) > 1 for method in group.methods)
    return MetricCurves(metric, metric_header(metric), time_name, tuple(curves), several)


def evaluations(run: RunRecord, metric: str) -> list[EpochMetrics]:
    """The evaluations of the run's main split that have this metric, in order."""
    secondary = {name.rpartition("/")[0] for name in run.final if "/" in name}
    return [found for found in run.metrics if metric in found.values and found.split not in secondary]


def draw_metric_curves(shown: MetricCurves, *, detail: str, path: Path) -> None:
    """Draw the metric over the time of training.

    Args:
        shown: what is drawn.
        detail: of which runs, for the heading.
        path: where the PNG goes.
    """
    if shown.several:
        detail += "\nleft: during training, lines join the means · right: at the end, mean ± standard deviation"
    with style.picture(path, what=shown.title, detail=detail, size=(9.5, 3.9) if shown.several else (7, 3.9)) as figure:
        ratios = (1.5, 1) if shown.several else (1,)
        course, *rest = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        for curve in shown.curves:
            marks = {
                "color": curve.colour,
                "marker": curve.marker,
                "edgecolors": "white",
                "linewidths": 0.7,
                "zorder": 3,
            }
            stages = [[point[1:] for point in stage.points] for stage in curve.stages]
            means = [stage.mean for stage in curve.stages]
            course.plot(*zip(*means), color=curve.colour, linewidth=2, zorder=2)
            course.scatter(*zip(*(point for points in stages for point in points)), s=36, **marks)
            look = {"color": curve.colour, "marker": curve.marker, "linewidth": 2, "markeredgecolor": "white"}
            course.plot([], [], label=f"{curve.label} (n = {curve.seeds})", **look)

            for end in rest:
                end.scatter(*zip(*stages[-1]), s=36, **marks)
                times, values = zip(*stages[-1])
                spread = {"xerr": estimate(times).sd, "yerr": estimate(values).sd}
                end.errorbar(*means[-1], **spread, color=curve.colour, linewidth=2, capsize=4, zorder=2)
        course.set_xlim(left=0)
        course.set_ylabel(shown.header, fontsize=11)
        course.legend(frameon=False, fontsize=10.5)
        for axes in (course, *rest):
            style.plain_axes(axes)
        for end in rest:
            end.margins(0.15)
        figure.supxlabel(f"training time in {shown.time_name}, evaluation not counted", fontsize=11)
