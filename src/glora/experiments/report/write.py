"""The report: tables, charts and a page from what has been run. It reads records and never trains.

`write_report` writes `report.md` with its pictures and `report.html` beside the records and prints the tables; the same records
give the same report.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from rich.measure import Measurement

from glora.experiments.number_format import printable
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import read_records, write_whole
from glora.experiments.report.cells import ReportTable, as_markdown, as_rich, escape_markdown, escape_paragraph
from glora.experiments.report.chart_style import ReportChart
from glora.experiments.report.content import (
    CAVEATS_TITLE,
    FAILURES_TITLE,
    PROVENANCE_TITLE,
    TITLE,
    ReportContent,
    first_line,
    report_content,
)
from glora.experiments.report.page import report_html
from glora.experiments.report.summary import summarise
from glora.experiments.search.record import read_search_record
from glora.experiments.terminal import Terminal
from glora.messages import pluralize

REPORT_FILE = "report.md"
HTML_FILE = "report.html"
PICTURES_FOLDER = "pictures"
MAX_WIDTH = 1000


class NoFinishedRunsError(ValueError):
    """There is nothing to report on."""


def write_report(directory: str | os.PathLike[str], *, console: Terminal | None = None) -> Path:
    """Write `<directory>/report.md` with its pictures and `<directory>/report.html`, and print the tables.

    Args:
        directory: the folder that `glora compare --output` was given.
        console: where the tables are printed; the terminal by default.

    Returns:
        The path of report.md; report.html is beside it.

    Raises:
        NoFinishedRunsError: if no run under the folder is finished; names those that failed, with their error.
        RecordError: if a record cannot be read.
    """
    directory = Path(directory)
    records = read_records(directory)
    _require_finished(directory, records)
    content = report_content(summarise(records), read_search_record(directory))
    console = console or Terminal()
    path = directory / REPORT_FILE
    write_whole(path, report_markdown(content))
    write_whole(directory / HTML_FILE, report_html(content))
    for section in content.sections:
        console.print(f"\n{section.heading}", style="bold")
        for table in section.tables:
            _print(console, table)
        for line in (*section.failures, *section.caveats):
            console.print(f"• {line}")
    for section in content.sections:
        if section.conclusion:
            console.print(f"\n{section.heading}", style="bold")
            console.print(" ".join(section.conclusion), soft_wrap=False)
    missing = _draw_pictures(content, directory / PICTURES_FOLDER)
    if missing:
        write_whole(path, report_markdown(content, missing))
        name, reason = next(iter(missing.items()))
        count = pluralize(len(missing), "picture")
        console.print(f"{count} could not be drawn, {name}.png first ({reason}); {HTML_FILE} has all charts.")
    return path


def _print(console: Terminal, table: ReportTable) -> None:
    """Print a table; beyond the terminal's width rather than without its last columns, where words need more room."""
    shown = as_rich(table)
    needed = Measurement.get(console, console.options.update(max_width=MAX_WIDTH), shown).minimum
    console.print(shown, width=max(console.width, needed), crop=False)


def _draw_pictures(content: ReportContent, folder: Path) -> dict[str, str]:
    """Draw the charts; return those that cannot be drawn or written, with the reason."""
    reasons = {chart.name: _draw(chart, folder) for section in content.sections for chart in section.charts}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _draw(chart: ReportChart, folder: Path) -> str | None:
    try:
        if folder.is_symlink():
            return f"{PICTURES_FOLDER} is a symbolic link"
        write_whole(folder / f"{chart.name}.png", chart.png())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the renderer is not an Exception
        return first_line(getattr(error, "strerror", None) or str(error))
    return None


def report_markdown(content: ReportContent, missing: Container[str] = ()) -> str:
    """Return the text of report.md; pictures are linked relative to it, but for the missing ones."""
    lines = [f"# {TITLE}"]
    for section in content.sections:
        lines += ["", f"## {escape_markdown(section.heading)}"]
        if section.conclusion:
            lines += ["", escape_paragraph(" ".join(section.conclusion))]
        for table in section.tables:
            lines += ["", *_table(table)]
        for chart in section.charts:
            link = f"![{escape_markdown(chart.title)}]({PICTURES_FOLDER}/{chart.name}.png)"
            shown = f"(This picture could not be drawn; {HTML_FILE} has the chart.)" if chart.name in missing else link
            lines += ["", shown, "", escape_paragraph(chart.caption)]
        lines += _listed(f"### {CAVEATS_TITLE}", section.caveats)
        lines += _listed(f"### {FAILURES_TITLE}", section.failures)
    lines += _listed(f"## {PROVENANCE_TITLE}", content.provenance)
    lines += ["", content.shared_settings.title, "", as_markdown(content.shared_settings)]
    return "\n".join(lines) + "\n"


def _require_finished(directory: Path, records: Sequence[RunRecord]) -> None:
    if any(record.status == "finished" for record in records):
        return
    failed = "".join(f"\n  {record.key}: {printable(first_line(record.error))}" for record in records)
    found = f"{pluralize(len(records), 'run')} failed:{failed}\nFix that and" if records else "To make some,"
    raise NoFinishedRunsError(
        f"no finished run under {str(directory)!r}: {found} run `glora compare --output {directory}`; "
        "`glora report` only reads what has been run."
    )


def _table(table: ReportTable) -> list[str]:
    return [f"**{escape_markdown(table.title)}**", "", as_markdown(table), "", escape_paragraph(table.note)]


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    items = [f"- {escape_paragraph(line)}" for line in lines]
    return ["", title, "", *items] if items else []
