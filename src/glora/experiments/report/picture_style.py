"""How every picture looks: size, fonts, and colours that colour-blind readers can tell apart.

The colours are those of Okabe and Ito (2008, "Color Universal Design"), each method with a marker of its own
as well. Figures are made without pyplot: no global state, no display needed, and the same bytes from the same
records.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
MARGIN_INCHES = 0.1
TITLE_POINTS, DETAIL_POINTS = 13, 10
INK = "#222222"
FAINT = "#c8c8c8"

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F", "#444444")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
FIXED = ("lora", "adalora", "glora", "shuffled")
"""Methods that have the same colour and marker in every picture of every report."""


def method_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Label -> (colour, marker); a well-known method keeps its own, the others take those that are left."""
    taken = [FIXED.index(label) for label in labels if label in FIXED]
    free = [i for i in range(len(OKABE_ITO)) if i not in taken] or list(range(len(OKABE_ITO)))
    styles: dict[str, tuple[str, str]] = {}
    others = 0
    for label in labels:
        if label in FIXED:
            i, shift = FIXED.index(label), 0
        else:
            shift, position = divmod(others, len(free))  # when the colours are used up, they come with other markers
            i = free[position]
            others += 1
        styles[label] = OKABE_ITO[i], MARKERS[(i + shift) % len(MARKERS)]
    return styles


@contextlib.contextmanager
def picture(path: Path, *, what: str, detail: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure to draw into, with its heading; written to `path` as PNG at the end.

    Args:
        path: where the PNG goes; its folder is made.
        what: what is seen, in bold.
        detail: of which runs and how to read it, in smaller type below; may have several lines.
        size: width and height in inches, heading not included.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    what, title_inches = _fitted(what, TITLE_POINTS, size[0])
    detail, detail_inches = _fitted(detail, DETAIL_POINTS, size[0])
    heading = MARGIN_INCHES + title_inches + detail_inches + MARGIN_INCHES
    width, height = size[0], size[1] + heading
    # A user's matplotlibrc must not change a report.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        below_heading = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - heading / height))
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout=below_heading)
        left, top = MARGIN_INCHES / width, 1 - MARGIN_INCHES / height
        figure.text(left, top, what, va="top", fontsize=TITLE_POINTS, fontweight="bold", color=INK)
        top -= title_inches / height
        figure.text(left, top, detail, va="top", fontsize=DETAIL_POINTS, color="#555555")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", facecolor="white", metadata={"Software": None})


def _fitted(text: str, points: int, width: float) -> tuple[str, float]:
    """The text in lines that fit the figure's width, and their height in inches.

    DejaVu Sans sets about 0.6 em a character, bold type a little more; a line is 1.45 em high.
    """
    em = points / 72
    characters = int((width - 2 * MARGIN_INCHES) / (0.68 * em))
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, max(20, characters))]
    return "\n".join(lines), len(lines) * 1.45 * em


def plain_axes(axes: Axes) -> None:
    """Two spines, a light grid behind the data, and readable ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, colors=INK)


def mixed(colour: str, other: str, share: float) -> str:
    """The colour with a share of another in it, as `#rrggbb`."""
    pairs = [(int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round((1 - share) * one + share * two):02x}" for one, two in pairs)


def over_seeds(seeds: Sequence[int]) -> str:
    """For a caption: `seed 0`, or `mean over seeds 0, 1, 2`."""
    listed = ", ".join(str(seed) for seed in seeds)
    return f"mean over seeds {listed}" if len(seeds) > 1 else f"seed {listed}"
