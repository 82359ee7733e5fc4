"""All pictures of a group: which there are, where they go, and what each shows in one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glora.experiments.report.metric_curves import MetricCurves, draw_metric_curves, metric_curves
from glora.experiments.report.norm_curves import NormCurves, draw_norms, norm_curves
from glora.experiments.report.rank_map import RankMap, draw_rank_map, rank_maps
from glora.experiments.report.summary import GroupSummary


@dataclass(frozen=True)
class Picture:
    """A picture that was written.

    Attributes:
        path: the PNG.
        title: what is seen, for the alternative text.
        caption: how to read it.
    """

    path: Path
    title: str
    caption: str


@dataclass(frozen=True, eq=False)
class Charts:
    """What there is to see of a group, apart from how it is drawn.

    Attributes:
        metric: the metric against time; None if nothing was evaluated on the way.
        ranks: a map for each method that has chosen its ranks.
        norms: curves for each method that recorded norms.
    """

    metric: MetricCurves | None
    ranks: tuple[RankMap, ...]
    norms: tuple[NormCurves, ...]


def charts(group: GroupSummary) -> Charts:
    """The metric against time, the chosen ranks and the norms over the warm-up, where there is something to see."""
    return Charts(metric_curves(group), tuple(rank_maps(group)), tuple(norm_curves(group)))


def draw_pictures(heading: str, shown: Charts, folder: Path) -> list[Picture]:
    """Draw the charts of a group as PNGs.

    Args:
        heading: of which runs; with what is shown it names the files.
        shown: its charts.
        folder: where the PNGs go; pictures of an earlier report with the same names are replaced.
    """
    pictures = []

    def picture(of: MetricCurves | RankMap | NormCurves, what: str) -> Path:
        path = folder / f"{_slug(f'{heading} {what}')}.png"
        pictures.append(Picture(path, of.title, of.caption))
        return path

    if shown.metric is not None:
        draw_metric_curves(shown.metric, detail=heading, path=picture(shown.metric, "time"))
    for ranks in shown.ranks:
        draw_rank_map(ranks, detail=heading, path=picture(ranks, f"ranks {ranks.method.label}"))
    for norms in shown.norms:
        draw_norms(norms, detail=heading, path=picture(norms, f"norms {norms.method.label}"))
    return pictures


def _slug(name: str) -> str:
    """A file name of letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
