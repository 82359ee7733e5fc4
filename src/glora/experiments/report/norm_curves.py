"""Picture: the averaged gradient norms of all matrices over the warm-up, one panel a matrix type.

Dozens of lines in one panel cannot be followed, so every panel shows all matrices in grey and those of its
own type in colour, from the first layer (light) to the last (dark), with the type's median in black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.records.schema import RunRecord
from glora.experiments.report import picture_style as style
from glora.experiments.report.module_grid import ModuleGrid, module_grid, module_map
from glora.experiments.report.summary import GroupSummary, MethodSummary
from glora.messages import pluralize

MAX_PANELS = 16
MAX_POINTS = 400
MAX_LINES = 400
"""With more matrices than this, those of a cell of the rank map share a line, their mean."""
LOG_SCALE_FROM = 8.0
"""Ratio of the largest to the smallest norm from which the axis is logarithmic."""


@dataclass(frozen=True, eq=False)
class NormPanel:
    """The matrices of one type: which lines are theirs, from the first layer to the last, and the lines' median."""

    title: str
    lines: tuple[int, ...]
    median: Any


@dataclass(frozen=True, eq=False)
class NormCurves:
    """The norms of one method as they are shown.

    Attributes:
        method: the row of the summary.
        seeds: the seeds whose mean is shown.
        steps: optimiser steps of the warm-up.
        names: what each line is: a module, or how many modules of which cell.
        values: norms, steps × lines, without the bias of an average that starts at zero.
        panels: the matrix types that are shown.
        types: how many matrix types there are.
        logarithmic: whether the axis of the norms is.
        layers: how many rows the map of the model has.
        merged: whether a line stands for several matrices.
    """

    method: MethodSummary
    seeds: tuple[int, ...]
    steps: list[int]
    names: list[str]
    values: Any
    panels: tuple[NormPanel, ...]
    types: int
    logarithmic: bool
    layers: int
    merged: bool

    @property
    def title(self) -> str:
        """What is seen."""
        return f"Gradient norms over the warm-up of {self.method.label}"

    @property
    def caption(self) -> str:
        """How to read it."""
        beta = self.method.runs[0].config.allocation.beta
        chosen = f" Shown are the {len(self.panels)} matrix types with the largest norms, of {self.types}."
        return (
            f"Gradient norm of each matrix over the warm-up of {self.method.label}, "
            f"{style.over_seeds(self.seeds)}: in colour the matrices of the panel's type, pale for "
            "the first layer to strong for the last, the thick line their median, in grey all other matrices. The norm "
            f"is an exponential moving average (beta = {beta:g}) that starts at zero; shown is g / (1 - beta^t), which takes "
            f"the rise from zero out of it.{chosen if len(self.panels) < self.types else ''}"
            + (" There are many matrices: a line is the mean of neighbouring ones." if self.merged else "")
        )


def norm_curves(group: GroupSummary) -> list[NormCurves]:
    """Curves for each method with norms, but for one that has the same as another (as a control has)."""
    shown: list[MethodSummary] = []
    for method in group.methods:
        if has_norms(method) and not any(same_norms(method, other) for other in shown):
            shown.append(method)
    return [_curves(method) for method in shown]


def corrected_norms(run: RunRecord) -> dict[int, dict[str, float]]:
    """Step t -> module k -> g_k / (1 - beta^t).

    The recorded g_k is an average that starts at zero, so after t steps it is too small by the factor 1 -
    beta^t (Kingma and Ba 2015, section 3). Uncorrected, every curve would rise in a way that no gradient did.
    The scores g_k / sum_j g_j are the same either way.
    """
    beta = run.config.allocation.beta
    return {
        sample.step: {module: value / (1 - beta**sample.step) for module, value in sample.values.items()}
        for sample in run.norms
    }


def has_norms(method: MethodSummary) -> bool:
    """Whether any run of this row recorded norms."""
    return any(run.norms for run in method.runs)


def same_norms(method: MethodSummary, other: MethodSummary) -> bool:
    """Whether two rows ended their warm-up alike, so that one picture is enough for both (as for a control)."""
    ours = {run.config.seed: run.norms[-1] for run in method.runs if run.norms}
    theirs = {run.config.seed: run.norms[-1] for run in other.runs if run.norms}
    return ours.keys() == theirs.keys() and all(
        sample.step == theirs[seed].step
        and sample.values.keys() == theirs[seed].values.keys()
        and all(math.isclose(norm, theirs[seed].values[k], rel_tol=1e-3) for k, norm in sample.values.items())
        for seed, sample in ours.items()
    )


def draw_norms(shown: NormCurves, *, detail: str, path: Path) -> None:
    """Draw the norms over the warm-up, mean over the seeds.

    Args:
        shown: what is drawn.
        detail: of which runs, for the heading.
        path: where the PNG goes.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import LogLocator, NullFormatter

    steps, norms = shown.steps, shown.values
    some = norms[:, :: math.ceil(norms.shape[1] / MAX_LINES)]  # in grey; a few of very many look the same
    across = _panels_across(len(shown.panels))
    down = math.ceil(len(shown.panels) / across)
    marker = "o" if len(steps) == 1 else ""
    widths = 1.2 if shown.layers <= 12 else 0.7
    seeds = style.over_seeds(shown.seeds)
    detail = f"{detail} · {seeds}\ncolour: first layer (pale) to last (strong) · thick: their median · grey: all others"

    size = (max(6.5, 2.9 * across + 0.5), 0.5 + 2.1 * down)
    with style.picture(path, what=shown.title, detail=detail, size=size) as figure:
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for empty in range(len(shown.panels), len(grid)):
            grid[empty].set_visible(False)
            grid[empty - across].tick_params(labelbottom=True)
        for position, (panel, axes) in enumerate(zip(shown.panels, grid)):
            colour = style.OKABE_ITO[position % len(style.OKABE_ITO)]
            dark = style.mixed(colour, "#000000", 0.45)
            shades = LinearSegmentedColormap.from_list("depth", [style.mixed(colour, "#ffffff", 0.55), colour, dark])
            own = panel.lines
            style.plain_axes(axes)
            axes.plot(steps, some, color=style.FAINT, linewidth=0.5, alpha=0.7, zorder=1)
            for depth, index in enumerate(own):
                shade = shades(depth / (len(own) - 1) if len(own) > 1 else 0.5)
                axes.plot(steps, norms[:, index], color=shade, linewidth=widths, marker=marker, zorder=2)
            if len(own) > 1:
                axes.plot(steps, panel.median, color=style.INK, linewidth=2, marker=marker, zorder=3)
            axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", color=dark)
            if shown.logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.yaxis.set_major_formatter(lambda norm, _: f"{norm:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
        figure.supxlabel("optimiser step of the warm-up", fontsize=11)
        figure.supylabel("averaged gradient norm" + (", log scale" if shown.logarithmic else ""), fontsize=11)


def _curves(method: MethodSummary) -> NormCurves:
    """What is shown of a method with norms."""
    import numpy as np

    runs = [run for run in method.runs if run.norms]
    seeds, steps, modules, norms = _mean_over_seeds(runs)
    merged = len(modules) > MAX_LINES
    grid = module_map(modules) if merged else module_grid(modules)
    names, values, members = _merged_lines(grid, modules, norms) if merged else _lines(grid, modules, norms)
    chosen = list(range(len(grid.columns)))
    if len(chosen) > MAX_PANELS:
        largest = sorted(chosen, key=lambda column: -np.nanmax(values[-1, members[column]]))
        chosen = sorted(largest[:MAX_PANELS])
    finite = values[np.isfinite(values) & (values > 0)]
    return NormCurves(
        method,
        seeds,
        steps,
        names,
        values,
        tuple(NormPanel(grid.columns[i], tuple(members[i]), np.median(values[:, members[i]], axis=1)) for i in chosen),
        len(grid.columns),
        finite.size > 0 and bool(finite.max() > LOG_SCALE_FROM * finite.min()),
        len(grid.row_labels),
        merged,
    )


def _lines(grid: ModuleGrid, modules: list[str], norms: Any) -> tuple[list[str], Any, list[list[int]]]:
    """Names, values and lines by column: a line a module."""
    position = {name: i for i, name in enumerate(modules)}
    return modules, norms, [[position[name] for name in grid.column_modules(i)] for i in range(len(grid.columns))]


def _merged_lines(grid: ModuleGrid, modules: list[str], norms: Any) -> tuple[list[str], Any, list[list[int]]]:
    """The same with a line a cell of the grid, the mean of its modules."""
    import numpy as np

    position = {name: i for i, name in enumerate(modules)}
    cells = sorted(grid.cells.items())
    names = [
        there[0] if len(there) == 1 else f"{pluralize(len(there), 'matrix')} from {there[0]}" for _, there in cells
    ]
    values = np.stack([norms[:, [position[name] for name in there]].mean(axis=1) for _, there in cells], axis=1)
    by_column: list[list[int]] = [[] for _ in grid.columns]
    for line, ((_, column), _) in enumerate(cells):
        by_column[column].append(line)
    return names, values, by_column


def _mean_over_seeds(runs: list[RunRecord]) -> tuple[tuple[int, ...], list[int], list[str], Any]:
    """Seeds, steps, modules and the array of corrected norms (steps × modules), over what all runs have in common."""
    import numpy as np

    corrected = [corrected_norms(run) for run in runs]
    seeds = tuple(run.config.seed for run in runs)
    steps = sorted(set(corrected[0]).intersection(*corrected[1:]))
    if not steps:  # other seeds were sampled at other steps: one seed is better than none
        corrected, seeds = corrected[:1], seeds[:1]
        steps = sorted(corrected[0])
    steps = steps[len(steps) - 1 :: -math.ceil(len(steps) / MAX_POINTS)][::-1]  # the last step stays
    samples = [norms[step] for norms in corrected for step in steps]
    modules = [name for name in samples[0] if all(name in sample for sample in samples)]
    values = np.array([[[norms[step][name] for name in modules] for step in steps] for norms in corrected])
    return seeds, steps, modules, values.mean(axis=0)


def _panels_across(panels: int) -> int:
    """Three panels a row, two for four; four where there are many."""
    if panels in (1, 2, 4):
        return min(panels, 2)
    return 3 if panels <= 9 else 4
