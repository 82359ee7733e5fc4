"""Picture: the rank of every matrix, layer × matrix type, with uniform LoRA's rank in white."""

from __future__ import annotations

import math
from pathlib import Path

from glora.experiments import picture_style as style
from glora.experiments.module_grid import ModuleGrid, module_grid
from glora.experiments.summary import MethodSummary


def mean_ranks(method: MethodSummary) -> dict[str, float]:
    """Module -> rank at the end, mean over the seeds; where a run names no rank, there is no adapter: 0."""
    modules = dict.fromkeys(name for run in method.runs for name in (*run.initial_ranks, *run.ranks))
    return {module: sum(run.ranks.get(module, 0) for run in method.runs) / len(method.runs) for module in modules}


def has_chosen_ranks(method: MethodSummary) -> bool:
    """Whether the ranks of some run are not all the same, so that there is something to see."""
    return any(len(set(run.ranks.values())) > 1 for run in method.runs)


def draw_rank_map(method: MethodSummary, *, uniform_rank: int, highest: float, detail: str, path: Path) -> str:
    """Draw the heat map and return its caption.

    Args:
        method: the row whose ranks are shown.
        uniform_rank: rank of uniform LoRA, the middle of the colour scale.
        highest: end of the colour scale; the same in all maps of a group, so that they can be compared.
        detail: of which runs, for the heading.
        path: where the PNG goes.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import TwoSlopeNorm

    ranks = mean_ranks(method)
    grid, row_labels, row_title = _layout(ranks)
    values = np.full((len(grid.rows), len(grid.columns)), np.nan)
    for cell, modules in grid.cells.items():
        values[cell] = np.mean([ranks[module] for module in modules])
    colours = colormaps["PuOr"].with_extremes(bad="#efefef")
    highest = max(math.ceil(highest), uniform_rank + 1)
    detail = f"{detail} · {style.over_seeds(method.seeds)}\nwhite: the {uniform_rank} of uniform LoRA"
    norm = TwoSlopeNorm(vcenter=uniform_rank, vmin=0, vmax=highest)

    longest = max(len(label) for label in row_labels)
    size = (max(6.5, 2.4 + 0.95 * len(grid.columns) + 0.09 * longest), 1.3 + 0.4 * len(grid.rows))
    with style.picture(path, what=f"Ranks after {method.label}", detail=detail, size=size) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            red, green, blue, _ = colours(norm(value))
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else style.INK
            axes.text(column, row, _rank_text(value), ha="center", va="center", fontsize=10, color=ink)
        axes.set_xticks(range(len(grid.columns)), grid.columns, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(grid.rows)), row_labels)
        axes.set_ylabel(row_title, fontsize=11)
        axes.tick_params(labelsize=10, colors=style.INK, length=0)
        axes.spines[:].set_visible(False)
        axes.set_xticks([i - 0.5 for i in range(1, len(grid.columns))], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, len(grid.rows))], minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="minor", length=0)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, aspect=30)
        bar.set_ticks([0, uniform_rank / 2, uniform_rank, (uniform_rank + highest) / 2, highest])
        bar.ax.yaxis.set_major_formatter(lambda value, _: _rank_text(value))
        bar.set_label("rank", fontsize=11)
        bar.outline.set_visible(False)

    merged = any(len(modules) > 1 for modules in grid.cells.values())
    return (
        f"The rank of each matrix after {method.label}, {style.over_seeds(method.seeds)}: white is the "
        f"{uniform_rank} of uniform LoRA, purple more, orange less; grey: there is no such matrix."
        + (" Matrices that differ in an inner number share a cell, which shows their mean." if merged else "")
    )


def _layout(modules: dict[str, float]) -> tuple[ModuleGrid, tuple[str, ...], str]:
    """The grid, the rows' labels and what the rows are; without layers, a column of matrices under each other."""
    grid = module_grid(modules)
    if any(layer is not None for _, layer in grid.rows):
        return grid, grid.row_labels, "layer"
    names = tuple(modules)
    cells: dict[tuple[int, int], tuple[str, ...]] = {(row, 0): (name,) for row, name in enumerate(names)}
    return ModuleGrid(tuple((name, None) for name in names), ("rank",), cells), names, "matrix"


def _rank_text(value: float) -> str:
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"
