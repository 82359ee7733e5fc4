"""The report: tables and pictures from what has been run. It reads records and never trains.

`write_report` writes `report.md` and its pictures beside the records and prints the tables; everything in it
can be made again from the records alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from glora.experiments.caveats import caveats
from glora.experiments.number_format import bytes_text, counted, short_name
from glora.experiments.pictures import Picture, draw_pictures
from glora.experiments.records import RunRecord, read_records
from glora.experiments.spec import RunConfig
from glora.experiments.summary import (
    NAMED_BY_GROUP,
    NAMED_BY_ROW,
    GroupSummary,
    differing_settings,
    summarise,
)
from glora.experiments.tables import as_markdown, as_rich, escape_markdown, group_tables

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

REPORT_FILE = "report.md"
PICTURES_FOLDER = "pictures"


class NoFinishedRunsError(ValueError):
    """There is nothing to report on."""


def write_report(directory: str | os.PathLike[str], *, console: Console | None = None) -> Path:
    """Write `<directory>/report.md` with its pictures, and print the tables.

    Args:
        directory: the folder that `glora compare --output` was given.
        console: where the tables are printed; the terminal by default.

    Returns:
        The path of report.md.

    Raises:
        NoFinishedRunsError: if no run under the folder is finished; names those that failed, with their
        error. RecordError: if a record cannot be read.
    """
    directory = Path(directory)
    records = read_records(directory)
    _require_finished(directory, records)
    groups = summarise(records)
    if console is None:
        from rich.console import Console

        console = Console()
    pictures = [draw_pictures(group, directory / PICTURES_FOLDER) for group in groups]
    path = directory / REPORT_FILE
    path.write_text(report_markdown(groups, pictures), encoding="utf-8")
    for group in groups:
        console.print(f"\n{heading(group)}", style="bold", markup=False, highlight=False)
        for table in terminal_table(group):
            console.print(table)
        for line in (*_failure_lines(group), *caveats(group)):
            console.print(f"• {line}", markup=False, highlight=False)
    return path


def terminal_table(summary: GroupSummary) -> list[Table]:
    """The tables of a group for rich: results, differences to lora, cost."""
    return [as_rich(table) for table in group_tables(summary)]


def heading(group: GroupSummary) -> str:
    """`rte · microsoft/deberta-v3-base · rank 8`."""
    return f"{short_name(group.task)} · {short_name(group.model)} · rank {group.rank}"


def report_markdown(groups: Sequence[GroupSummary], pictures: Sequence[Sequence[Picture]]) -> str:
    """The text of report.md.

    Args:
        groups: the groups, in the order in which they are to stand.
        pictures: the pictures of each group; they are linked relative to the report.
    """
    finished = [run for group in groups for run in group.finished]
    failed = [run for group in groups for run in group.failures]
    lines = [
        "# Rank allocation compared",
        "",
        f"{counted(len(finished), 'finished run')}, {len(failed)} failed. Made from the records in `runs/` by "
        "`glora report`, which trains nothing.",
    ]
    for group, drawn in zip(groups, pictures):
        lines += ["", f"## {escape_markdown(heading(group))}"]
        for table in group_tables(group):
            lines += ["", f"**{table.title}**", "", as_markdown(table), "", table.note]
        for picture in drawn:
            lines += [
                "",
                f"![{escape_markdown(picture.title)}]({PICTURES_FOLDER}/{picture.path.name})",
                "",
                escape_markdown(picture.caption),
            ]
        lines += _listed("### What limits this comparison", caveats(group))
        lines += _listed("### Failed runs", _failure_lines(group))
    lines += ["", "## How the runs were made", ""]
    lines += [f"- {escape_markdown(line)}" for line in _provenance_lines(finished)]
    lines += _settings_lines([run.config for run in finished])
    return "\n".join(lines) + "\n"


def _require_finished(directory: Path, records: Sequence[RunRecord]) -> None:
    if any(record.status == "finished" for record in records):
        return
    failed = "".join(f"\n  {record.key}: {_first_line(record.error)}" for record in records)
    found = f"all {counted(len(records), 'run')} failed:{failed}\nMend that and" if records else "To make some,"
    raise NoFinishedRunsError(
        f"no finished run under {str(directory)!r}: {found} run `glora compare --output {directory}`; "
        "`glora report` only reads what has been run."
    )


def _failure_lines(group: GroupSummary) -> list[str]:
    return [f"{run.config.method}, seed {run.config.seed} failed: {_first_line(run.error)}" for run in group.failures]


def _first_line(error: str | None) -> str:
    return (error or "unknown error").strip().splitlines()[0]


def _provenance_lines(runs: Sequence[RunRecord]) -> list[str]:
    """Machines, versions, git states, data and measures of memory; each value once."""
    machines = [run.provenance.machine for run in runs]
    described = (
        ", ".join(
            part
            for part in (
                machine.cpu,
                counted(machine.cores, "core"),
                bytes_text(machine.memory_bytes) if machine.memory_bytes else "",
                machine.accelerator or "no accelerator",
                counted(machine.torch_threads, "torch thread") if machine.torch_threads else "",
                machine.platform,
            )
            if part
        )
        for machine in machines
    )
    versions = (", ".join(f"{name} {version}" for name, version in run.provenance.versions.items()) for run in runs)
    commits = (
        f"{run.provenance.git.commit[:12]}{' with uncommitted changes' if run.provenance.git.dirty else ''}"
        for run in runs
        if run.provenance.git
    )
    examples = (
        f"{short_name(run.config.task)}: "
        + ", ".join(f"{count:,} {split}" for split, count in run.examples.items())
        + (f" (fingerprint {run.provenance.data_fingerprint})" if run.provenance.data_fingerprint else "")
        for run in runs
        if run.examples
    )
    dates = sorted(run.finished_at for run in runs)
    lines = [f"Finished between {dates[0]} and {dates[-1]}"]
    for name, values in (
        ("Machine", described),
        ("Versions", versions),
        ("Commit of glora", commits),
        ("Examples", examples),
        ("Peak memory is", (run.peak_memory_source for run in runs if run.peak_memory_source)),
    ):
        lines += [f"{name}: {value}" for value in dict.fromkeys(values)]
    return lines


def _settings_lines(configs: Sequence[RunConfig]) -> list[str]:
    """What was compared and whatever else differs, with all values; then a table of what all runs share."""
    named = (*NAMED_BY_GROUP, *NAMED_BY_ROW)
    different = differing_settings(configs, ignored=named)
    shared = [name for name in RunConfig.model_fields if name not in (*named, *different)]
    lines = [f"- {escape_markdown(name)}: {_values(configs, name)}" for name in (*named, *different)]
    lines += [
        "",
        "All other settings were the same in all runs:",
        "",
        "| setting | value | meaning |",
        "| --- | --- | --- |",
    ]
    for name in shared:
        meaning = escape_markdown(RunConfig.model_fields[name].description or "")
        lines.append(f"| {escape_markdown(name)} | {_setting_text(getattr(configs[0], name))} | {meaning} |")
    return lines


def _values(configs: Sequence[RunConfig], name: str) -> str:
    return ", ".join(dict.fromkeys(_setting_text(getattr(config, name)) for config in configs))


def _setting_text(value: object) -> str:
    if value is None:
        return "default"
    if isinstance(value, tuple):
        return escape_markdown(", ".join(map(str, value)))
    return escape_markdown(short_name(value) if isinstance(value, str) else f"{value}")


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    items = [f"- {escape_markdown(line)}" for line in lines]
    return ["", title, "", *items] if items else []
