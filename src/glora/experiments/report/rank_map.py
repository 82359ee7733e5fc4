"""Picture: the rank of every matrix, layer × matrix type, with uniform LoRA's rank in white."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glora.experiments.report import picture_style as style
from glora.experiments.report.module_grid import ModuleGrid, module_map
from glora.experiments.report.summary import GroupSummary, MethodSummary


@dataclass(frozen=True)
class RankMap:
    """The ranks of one method as they are shown.

    Attributes:
        method: the row of the summary.
        grid: where each matrix stands.
        ranks: (row, column) -> rank at the end, mean over the seeds and over the matrices of the cell.
        by_seed: (row, column) -> the same for each seed.
        uniform_rank: rank of uniform LoRA, the middle of the colour scale.
        highest: end of the colour scale; the same in all maps of a group, so that they can be compared.
    """

    method: MethodSummary
    grid: ModuleGrid
    ranks: dict[tuple[int, int], float]
    by_seed: dict[tuple[int, int], tuple[float, ...]]
    uniform_rank: int
    highest: int

    @property
    def title(self) -> str:
        """What is seen."""
        return f"Ranks after {self.method.label}"

    @property
    def caption(self) -> str:
        """How to read it."""
        return (
            f"The rank of each matrix after {self.method.label}, {style.over_seeds(self.method.seeds)}: the neutral colour "
            f"is the {self.uniform_rank} of uniform LoRA, purple more, orange less; an empty cell: there is no such matrix."
            + (" A cell that stands for several matrices shows their mean." if self.grid.merged else "")
        )


def rank_maps(group: GroupSummary) -> list[RankMap]:
    """A map for each method that has chosen its ranks."""
    chosen = [method for method in group.methods if has_chosen_ranks(method)]
    means = [mean_ranks(method) for method in chosen]
    highest = max((rank for ranks in means for rank in ranks.values()), default=0.0)
    maps = []
    for method, ranks in zip(chosen, means):
        grid = module_map(ranks)
        maps.append(
            RankMap(
                method,
                grid,
                {cell: _mean([ranks[name] for name in names]) for cell, names in grid.cells.items()},
                {
                    cell: tuple(_mean([run.ranks.get(name, 0) for name in names]) for run in method.runs)
                    for cell, names in grid.cells.items()
                },
                group.rank,
                max(math.ceil(highest), group.rank + 1),
            )
        )
    return maps


def mean_ranks(method: MethodSummary) -> dict[str, float]:
    """Module -> rank at the end, mean over the seeds; where a run names no rank, there is no adapter: 0."""
    modules = dict.fromkeys(name for run in method.runs for name in (*run.initial_ranks, *run.ranks))
    return {module: sum(run.ranks.get(module, 0) for run in method.runs) / len(method.runs) for module in modules}


def has_chosen_ranks(method: MethodSummary) -> bool:
    """Whether the ranks of some run are not all the same, so that there is something to see."""
    return any(len(set(run.ranks.values())) > 1 for run in method.runs)


def draw_rank_map(shown: RankMap, *, detail: str, path: Path) -> None:
    """Draw the heat map.

    Args:
        shown: what is drawn.
        detail: of which runs, for the heading.
        path: where the PNG goes.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import TwoSlopeNorm

    grid, uniform_rank, highest = shown.grid, shown.uniform_rank, shown.highest
    values = np.full((len(grid.row_labels), len(grid.columns)), np.nan)
    for cell, rank in shown.ranks.items():
        values[cell] = rank
    colours = colormaps["PuOr"].with_extremes(bad="#efefef")
    detail = f"{detail} · {style.over_seeds(shown.method.seeds)}\nwhite: the {uniform_rank} of uniform LoRA"
    norm = TwoSlopeNorm(vcenter=uniform_rank, vmin=0, vmax=highest)

    longest = max(len(label) for label in grid.row_labels)
    size = (max(6.5, 2.4 + 0.95 * len(grid.columns) + 0.09 * longest), 1.3 + 0.4 * len(grid.row_labels))
    with style.picture(path, what=shown.title, detail=detail, size=size) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            red, green, blue, _ = colours(norm(value))
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else style.INK
            axes.text(column, row, rank_text(value), ha="center", va="center", fontsize=10, color=ink)
        axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(grid.row_labels)), grid.row_labels)
        axes.set_ylabel(grid.row_title, fontsize=11)
        axes.tick_params(labelsize=10, colors=style.INK, length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks([i - 0.5 for i in range(1, len(grid.columns))], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, len(grid.row_labels))], minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=30)
        bar.set_ticks([0, uniform_rank / 2, uniform_rank, (uniform_rank + highest) / 2, highest])
        bar.ax.yaxis.set_major_formatter(lambda value, _: rank_text(value))
        bar.set_label("rank", fontsize=11)
        bar.outline.set_visible(False)


def rank_text(value: float) -> str:
    """`8`, or `8.3` for a mean that is no whole number."""
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
