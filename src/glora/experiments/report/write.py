"""The report: tables and pictures from what has been run. It reads records and never trains.

`write_report` writes `report.md` with its pictures and `report.html` beside the records and prints the tables; everything
in them can be made again from the records alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glora.experiments.records.schema import RunRecord, read_records
from glora.experiments.records.whole_files import write_whole
from glora.experiments.report.content import (
    CAVEATS_TITLE,
    FAILURES_TITLE,
    PROVENANCE_TITLE,
    SHARED_SETTINGS_TITLE,
    TITLE,
    ReportContent,
    first_line,
    report_content,
)
from glora.experiments.report.page import report_html
from glora.experiments.report.pictures import Picture, draw_pictures
from glora.experiments.report.summary import summarise
from glora.experiments.report.tables import TextTable, as_markdown, as_rich, escape_markdown
from glora.experiments.search.record import read_search_record
from glora.messages import pluralize

if TYPE_CHECKING:
    from rich.console import Console

REPORT_FILE = "report.md"
HTML_FILE = "report.html"
PICTURES_FOLDER = "pictures"


class NoFinishedRunsError(ValueError):
    """There is nothing to report on."""


def write_report(directory: str | os.PathLike[str], *, console: Console | None = None) -> Path:
    """Write `<directory>/report.md` with its pictures and `<directory>/report.html`, and print the tables.

    Args:
        directory: the folder that `glora compare --output` was given.
        console: where the tables are printed; the terminal by default.

    Returns:
        The path of report.md; report.html stands beside it.

    Raises:
        NoFinishedRunsError: if no run under the folder is finished; names those that failed, with their
            error.
        RecordError: if a record cannot be read.
    """
    directory = Path(directory)
    records = read_records(directory)
    _require_finished(directory, records)
    content = report_content(summarise(records), read_search_record(directory))
    if console is None:
        from rich.console import Console

        console = Console()
    folder = directory / PICTURES_FOLDER
    pictures = [draw_pictures(section.heading, section.charts, folder) for section in content.sections]
    path = directory / REPORT_FILE
    write_whole(path, report_markdown(content, pictures))
    write_whole(directory / HTML_FILE, report_html(content))
    for section in content.sections:
        console.print(f"\n{section.heading}", style="bold", markup=False, highlight=False)
        for table in section.tables:
            console.print(as_rich(table))
        for line in (*section.failures, *section.caveats):
            console.print(f"• {line}", markup=False, highlight=False)
    if content.overview:
        console.print()
        console.print(as_rich(content.overview))
    return path


def report_markdown(content: ReportContent, pictures: Sequence[Sequence[Picture]]) -> str:
    """The text of report.md.

    Args:
        content: what it says.
        pictures: the pictures of each section; they are linked relative to the report.
    """
    lines = [f"# {TITLE}", "", content.summary]
    if content.overview:
        lines += ["", *_table(content.overview)]
    for section, drawn in zip(content.sections, pictures):
        lines += ["", f"## {escape_markdown(section.heading)}"]
        for table in section.tables:
            lines += ["", *_table(table)]
        for picture in drawn:
            lines += [
                "",
                f"![{escape_markdown(picture.title)}]({PICTURES_FOLDER}/{picture.path.name})",
                "",
                escape_markdown(picture.caption),
            ]
        lines += _listed(f"### {CAVEATS_TITLE}", section.caveats)
        lines += _listed(f"### {FAILURES_TITLE}", section.failures)
    lines += _listed(f"## {PROVENANCE_TITLE}", content.provenance)
    lines += ["", SHARED_SETTINGS_TITLE, "", as_markdown(content.shared_settings)]
    return "\n".join(lines) + "\n"


def _require_finished(directory: Path, records: Sequence[RunRecord]) -> None:
    if any(record.status == "finished" for record in records):
        return
    failed = "".join(f"\n  {record.key}: {first_line(record.error)}" for record in records)
    found = f"{pluralize(len(records), 'run')} failed:{failed}\nMend that and" if records else "To make some,"
    raise NoFinishedRunsError(
        f"no finished run under {str(directory)!r}: {found} run `glora compare --output {directory}`; "
        "`glora report` only reads what has been run."
    )


def _table(table: TextTable) -> list[str]:
    return [f"**{table.title}**", "", as_markdown(table), "", table.note]


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    items = [f"- {escape_markdown(line)}" for line in lines]
    return ["", title, "", *items] if items else []
