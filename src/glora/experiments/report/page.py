"""report.html: the content of report.md as one file that opens offline, with charts that answer to pointer and touch.

Style, scripts (Vega, Vega-Lite and vega-embed, from vl-convert) and data are inside the file. It asks the network for nothing,
and its content security policy forbids it to: only the style and the script with the hashes given there are used, and Vega's
own interpreter evaluates expressions, so that nothing is `eval`ed. Every text from a record goes through Jinja's autoescape or
into a chart as data.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from glora.experiments.number_format import printable
from glora.experiments.report import content as report
from glora.experiments.report.cells import Quantity, Verdict, cell_text
from glora.experiments.report.chart_style import DARK, LIGHT, theme, vega_scripts
from glora.experiments.report.content import ReportContent

LONG = 24
"""Characters from which a text may be broken into lines."""


def report_html(content: ReportContent) -> str:
    """Return the text of report.html."""
    environment = Environment(
        loader=PackageLoader("glora.experiments.report", "template"),
        autoescape=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _with_code
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.tests.update(
        quantity=lambda cell: isinstance(cell, Quantity), verdict=lambda cell: isinstance(cell, Verdict)
    )
    specs = [[chart.spec for chart in section.charts] for section in content.sections]
    style = _asset("style.css")
    script = (vega_scripts() if any(specs) else "") + _asset("page.js")
    return environment.get_template("page.html.jinja").render(
        report=report,
        content=content,
        cell_text=cell_text,
        long=LONG,
        style=Markup(style),
        script=Markup(script),
        data={"charts": specs, "light": theme(LIGHT), "dark": theme(DARK)},
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _with_code(text: str) -> Markup:
    """Escape the text and set in code what is in backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(printable(text)))))


def _asset(name: str) -> str:
    return files("glora.experiments.report").joinpath("template", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return what a content security policy calls an inline style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
