"""The look of charts, and the chart itself: one specification for report.html and for the PNG.

A specification names colors ("series0", "less", "ink") and `theme` gives each a value, so that one chart serves paper, light
and dark screens. Series colors are those of Okabe and Ito (2008, "Color Universal Design"), with a marker for each as well.
Names from records are data: they occur in rows, titles and scale domains, never as a field name or an expression.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from glora.experiments.number_format import printable
from glora.experiments.report.cells import ReportTable
from glora.experiments.report.summary import GroupSummary
from glora.messages import pluralize

LIGHT = {
    "series": ("#0072b2", "#b06a00", "#00855e", "#b3548b", "#c85400", "#2a86c3", "#856619", "#444444"),
    **{"ink": "#1b1e24", "muted": "#565d69", "line": "#dcdfe5", "faint": "#c9cdd4", "page": "#ffffff"},
    **{"less": "#b35806", "neutral": "#f2f1ef", "more": "#542788", "first": "#8ec3e6", "last": "#003f66"},
}
DARK = {
    "series": ("#5aabe8", "#f0b03f", "#2fc99d", "#e59cc7", "#ff8f52", "#93d2ff", "#cfab4f", "#c6c9d0"),
    **{"ink": "#e9ebf0", "muted": "#a8b0bd", "line": "#30353f", "faint": "#4a505c", "page": "#12141a"},
    **{"less": "#f5a253", "neutral": "#262a33", "more": "#b79df5", "first": "#2b5d80", "last": "#bfe3ff"},
}
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "triangle-right", "triangle-left")
FIXED = ("LoRA", "AdaLoRA", "GLoRA by gradient norm", "shuffled GLoRA by gradient norm", "GLoRA by spectrum")
"""Methods with the same color and marker in every chart of every report."""


@dataclass(frozen=True, eq=False)
class ReportChart:
    """A chart: its title, its caption, and its Vega-Lite specification.

    Attributes:
        name: of its picture, for the file: ASCII, at most 180 characters.
        values: the main numbers as a table, where the page draws marks that a screen reader cannot read.
    """

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    values: ReportTable | None = None

    def png(self) -> bytes:
        """Return the picture for the file, on white."""
        return png(self.spec)


def png(spec: dict[str, Any]) -> bytes:
    """Draw a Vega-Lite specification on white, at 144 dots an inch."""
    return vl_convert.vegalite_to_png(spec, config=theme(LIGHT), ppi=144, allowed_base_urls=[])


def theme(colors: dict[str, Any]) -> dict[str, Any]:
    """The Vega-Lite configuration of a color scheme."""
    named = {**colors, **{f"series{i}": color for i, color in enumerate(colors["series"])}}
    text = {"labelColor": colors["muted"], "titleColor": colors["muted"], "labelFontSize": 11, "titleFontSize": 12}
    return {
        "params": [{"name": name, "value": value} for name, value in named.items() if name != "series"],
        "background": colors["page"],
        "font": "system-ui, sans-serif",
        "title": {"anchor": "start", "color": colors["ink"], "subtitleColor": colors["muted"], "fontSize": 14},
        "axis": {
            **{"gridColor": colors["line"], "domainColor": colors["faint"], "tickColor": colors["faint"]},
            **{"titleFontWeight": "normal", "labelLimit": 220, **text},
        },
        "header": {"labelFontWeight": "bold", "labelAnchor": "start", **text, "labelColor": colors["ink"]},
        "legend": {
            "columns": 4,
            "labelLimit": 600,
            "symbolSize": 80,
            **text,
            "labelColor": colors["ink"],
            "titleFontWeight": "normal",
        },
        "view": {"stroke": None},
    }


@functools.cache  # the bundle takes two seconds
def vega_scripts() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, which can be inside a script element."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script") + "\n"


def method_styles(labels: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Label -> (series color, marker); a well-known method keeps its own, the others take those that are left."""
    taken = [FIXED.index(label) for label in labels if label in FIXED]
    free = [i for i in range(len(MARKERS)) if i not in taken] or list(range(len(MARKERS)))
    styles = {label: (FIXED.index(label), MARKERS[FIXED.index(label)]) for label in labels if label in FIXED}
    for position, label in enumerate(label for label in labels if label not in FIXED):
        shift, place = divmod(position, len(free))  # when the colors are used up, they come with other markers
        styles[label] = free[place], MARKERS[(free[place] + shift) % len(MARKERS)]
    return styles


def finished(
    name: str, group: GroupSummary, title: str, caption: str, how: str, chart: Any, values: ReportTable | None = None
) -> ReportChart:
    """The chart with its heading, which a page takes off again and shows as text."""
    lines = [line for text in (group.heading, how) if text for line in textwrap.wrap(printable(text), 90)]
    heading = alt.TitleParams(textwrap.wrap(printable(title), 80), subtitle=lines)
    shown = chart.properties(title=heading, description=printable(title))
    file = f"{_file_part(group.heading, 120)}-{_file_part(name, 59)}"
    return ReportChart(file, title, caption, shown.to_dict(), values)


def _file_part(text: str, longest: int) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9.]+", "-", plain)[:longest].strip("-.")


def pointed_mark() -> alt.Parameter:
    """Return the selection of the mark under the pointer."""
    return alt.selection_point(name="pointed", on="pointerover", clear="pointerout", empty=False)


def data(rows: Sequence[dict[str, Any]]) -> alt.InlineData:
    """Return the rows as a chart's data."""
    return alt.InlineData(values=list(rows))


def rounded(value: float) -> float | None:
    """Four significant digits; None for what JSON has no number for."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def cell_name(names: Sequence[str]) -> str:
    """Return the name of a matrix, or of several that are shown as one."""
    return printable(names[0] if len(names) == 1 else f"{pluralize(len(names), 'matrix')} from {names[0]}")


def over_seeds(seeds: Sequence[int]) -> str:
    """Return `seed 0`, or `mean over seeds 0, 1`."""
    return f"mean over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
