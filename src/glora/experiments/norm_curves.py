"""Picture: the averaged gradient norms of all matrices over the warm-up, one panel a matrix type.

Dozens of lines in one panel cannot be followed, so every panel shows all matrices in grey and those of its
own type in colour, from the first layer (light) to the last (dark), with the type's median in black.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from glora.experiments import picture_style as style
from glora.experiments.module_grid import module_grid
from glora.experiments.records import RunRecord
from glora.experiments.summary import MethodSummary

MOST_PANELS = 16
MOST_POINTS = 400
LOG_SCALE_FROM = 8.0
"""Ratio of the largest to the smallest norm from which the axis is logarithmic."""


def corrected_norms(run: RunRecord) -> dict[int, dict[str, float]]:
    """Step t -> module k -> g_k / (1 - beta^t).

    The recorded g_k is an average that starts at zero, so after t steps it is too small by the factor 1 -
    beta^t (Kingma and Ba 2015, section 3). Uncorrected, every curve would rise in a way that no gradient did.
    The scores g_k / sum_j g_j are the same either way.
    """
    beta = run.config.beta
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


def draw_norms(method: MethodSummary, *, detail: str, path: Path) -> str:
    """Draw the norms over the warm-up, mean over the seeds, and return the caption.

    Args:
        method: a row with recorded norms.
        detail: of which runs, for the heading.
        path: where the PNG goes.
    """
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import LogLocator, NullFormatter

    runs = [run for run in method.runs if run.norms]
    steps, modules, norms = _mean_over_seeds(runs)
    grid = module_grid(modules)
    members = [[modules.index(name) for name in grid.column_modules(i)] for i in range(len(grid.columns))]
    shown = list(range(len(grid.columns)))
    if len(shown) > MOST_PANELS:
        largest = sorted(shown, key=lambda column: -np.nanmax(norms[-1, members[column]]))
        shown = sorted(largest[:MOST_PANELS])
    across = _panels_across(len(shown))
    down = math.ceil(len(shown) / across)
    finite = norms[np.isfinite(norms) & (norms > 0)]
    logarithmic = finite.size > 0 and finite.max() > LOG_SCALE_FROM * finite.min()
    marker = "o" if len(steps) == 1 else ""
    widths = 1.2 if len(grid.rows) <= 12 else 0.7
    seeds = style.over_seeds([run.config.seed for run in runs])
    detail = f"{detail} · {seeds}\ncolour: first layer (light) to last (dark) · black: their median · grey: all others"

    what = f"Gradient norms over the warm-up of {method.label}"
    size = (max(6.5, 2.9 * across + 0.5), 0.5 + 2.1 * down)
    with style.picture(path, what=what, detail=detail, size=size) as figure:
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for empty in range(len(shown), len(panels)):
            panels[empty].set_visible(False)
            panels[empty - across].tick_params(labelbottom=True)
        for column, axes in zip(shown, panels):
            colour = style.OKABE_ITO[column % len(style.OKABE_ITO)]
            dark = style.mixed(colour, "#000000", 0.45)
            shades = LinearSegmentedColormap.from_list("depth", [style.mixed(colour, "#ffffff", 0.55), colour, dark])
            own = members[column]
            style.plain_axes(axes)
            axes.plot(steps, norms, color=style.FAINT, linewidth=0.5, alpha=0.7, zorder=1)
            for depth, index in enumerate(own):
                shade = shades(depth / (len(own) - 1) if len(own) > 1 else 0.5)
                axes.plot(steps, norms[:, index], color=shade, linewidth=widths, marker=marker, zorder=2)
            if len(own) > 1:
                median = np.median(norms[:, own], axis=1)
                axes.plot(steps, median, color=style.INK, linewidth=2, marker=marker, zorder=3)
            axes.set_title(grid.columns[column], loc="left", fontsize=10.5, fontweight="bold", color=dark)
            if logarithmic:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
                axes.yaxis.set_major_formatter(lambda norm, _: f"{norm:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
        figure.supxlabel("optimiser step of the warm-up", fontsize=11)
        figure.supylabel("averaged gradient norm" + (", log scale" if logarithmic else ""), fontsize=11)

    beta = runs[0].config.beta
    chosen = f" Shown are the {len(shown)} matrix types with the largest norms, of {len(grid.columns)}."
    return (
        f"Gradient norm of each matrix over the warm-up of {method.label}, "
        f"{seeds}: in colour the matrices of the panel's type, light for "
        "the first layer to dark for the last, in black their median, in grey all other matrices. The norm is an "
        f"exponential moving average (beta = {beta:g}) that starts at zero; shown is g / (1 - beta^t), which takes the "
        f"rise from zero out of it.{chosen if len(shown) < len(grid.columns) else ''}"
    )


def _mean_over_seeds(runs: list[RunRecord]) -> tuple[list[int], list[str], Any]:
    """Steps, modules and the array of corrected norms (steps × modules), over what all runs have in common."""
    import numpy as np

    corrected = [corrected_norms(run) for run in runs]
    steps = sorted(set(corrected[0]).intersection(*corrected[1:]))
    if not steps:  # other seeds were sampled at other steps: one seed is better than none
        corrected = corrected[:1]
        steps = sorted(corrected[0])
    steps = steps[len(steps) - 1 :: -math.ceil(len(steps) / MOST_POINTS)][::-1]  # the last step stays
    samples = [norms[step] for norms in corrected for step in steps]
    modules = [name for name in samples[0] if all(name in sample for sample in samples)]
    values = np.array([[[norms[step][name] for name in modules] for step in steps] for norms in corrected])
    return steps, modules, values.mean(axis=0)


def _panels_across(panels: int) -> int:
    """Three panels a row, two for four; four where there are many."""
    if panels in (1, 2, 4):
        return min(panels, 2)
    return 3 if panels <= 9 else 4
