"""All pictures of a group: which there are, where they go, and what each shows in one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from glora.experiments.metric_curves import draw_metric_curves, has_curves
from glora.experiments.norm_curves import draw_norms, has_norms, same_norms
from glora.experiments.number_format import metric_name, short_name
from glora.experiments.rank_map import draw_rank_map, has_chosen_ranks, mean_ranks
from glora.experiments.summary import GroupSummary, MethodSummary


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


def draw_pictures(group: GroupSummary, folder: Path) -> list[Picture]:
    """Draw the metric against time, the chosen ranks and the norms over the warm-up, where there is something to see.

    Args:
        group: the group.
        folder: where the PNGs go; pictures of an earlier report with the same names are replaced.
    """
    detail = f"{short_name(group.task)} · {short_name(group.model)} · rank {group.rank}"
    pictures = []

    def path(what: str) -> Path:
        return folder / f"{_slug(f'{detail} {what}')}.png"

    if has_curves(group) and group.primary_metric:
        file = path("time")
        caption = draw_metric_curves(group, detail=detail, path=file)
        pictures.append(Picture(file, f"{metric_name(group.primary_metric)} against training time", caption))

    chosen = [method for method in group.methods if has_chosen_ranks(method)]
    highest = max((rank for method in chosen for rank in mean_ranks(method).values()), default=0.0)
    for method in chosen:
        file = path(f"ranks {method.label}")
        caption = draw_rank_map(method, uniform_rank=group.rank, highest=highest, detail=detail, path=file)
        pictures.append(Picture(file, f"Ranks after {method.label}", caption))

    drawn: list[MethodSummary] = []
    for method in group.methods:
        if has_norms(method) and not any(same_norms(method, other) for other in drawn):
            drawn.append(method)
            file = path(f"norms {method.label}")
            caption = draw_norms(method, detail=detail, path=file)
            pictures.append(Picture(file, f"Gradient norms over the warm-up of {method.label}", caption))
    return pictures


def _slug(name: str) -> str:
    """A file name of letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
