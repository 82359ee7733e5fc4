"""report.html: what report.md says, as one file that opens offline, with charts that answer to pointer, touch and keyboard.

Style, scripts and data are inside the file. It asks the network for nothing, and its content security policy forbids it
to: only the style and the script whose hashes stand there are used. Every text from a record goes through Jinja's
autoescape, and the charts put text into the page as text, so that a model folder called `<script>` is a strange name
and nothing more. The charts are a few hundred lines of own JavaScript, a hundredth of what a plotting library would weigh
in every report.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from glora.experiments.report.chart_data import chart_data
from glora.experiments.report.content import (
    CAVEATS_TITLE,
    FAILURES_TITLE,
    PROVENANCE_TITLE,
    TITLE,
    ReportContent,
)
from glora.experiments.report.number_format import sort_number
from glora.experiments.report.tables import TextTable

PAGE_FOLDER = "page_files"
SCRIPTS = ("sorting.js", "tooltip.js", "plot.js", "metric_chart.js", "norm_chart.js", "rank_map.js", "start.js")
"""In this order they are one script."""


LONG = 24
"""Characters from which a text may be broken into lines."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table in the page.

    Attributes:
        text: what is shown.
        words: whether its column holds words.
        sort: of a column of numbers, what the cell sorts by; empty if the number is missing.
        tone: of a verdict, how it is coloured.
    """

    text: str
    words: bool
    sort: str
    tone: str

    @property
    def long(self) -> bool:
        """Whether it may be broken into lines."""
        return len(self.text) >= LONG


def report_html(content: ReportContent) -> str:
    """The text of report.html.

    Args:
        content: what the report says.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("glora.experiments.report", PAGE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _with_code
    style = _asset("style.css")
    script = "(() => {\n'use strict';\n" + "\n".join(map(_asset, SCRIPTS)) + "})();\n"
    return environment.get_template("page.html.jinja").render(
        title=TITLE,
        caveats_title=CAVEATS_TITLE,
        failures_title=FAILURES_TITLE,
        provenance_title=PROVENANCE_TITLE,
        content=content,
        cells=_cells,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(json_for_script([chart_data(section.charts) for section in content.sections])),
    )


def json_for_script(value: Any) -> str:
    """JSON that can stand inside a script element: no `<`, `>` or `&`, so that nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _cells(table: TextTable) -> list[list[Cell]]:
    return [[_cell(table, column, text) for column, text in zip(table.columns, row)] for row in table.rows]


def _cell(table: TextTable, column: str, text: str) -> Cell:
    words = column in table.words
    number = None if words else sort_number(text)
    tone = _tone(text) if column in table.verdicts else ""
    return Cell(text, words, "" if number is None else repr(number), tone)


def _tone(verdict: str) -> str:
    """How a verdict is coloured: good, bad, or open where nothing is shown."""
    if verdict.startswith("holds") or verdict.endswith("(better)"):
        return "good"
    return "bad" if verdict.startswith("does not hold") or verdict.endswith("(worse)") else "open"


def _with_code(text: str) -> Any:
    """Escaped, with what stands in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _asset(name: str) -> str:
    return files("glora.experiments.report").joinpath(PAGE_FOLDER, name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
