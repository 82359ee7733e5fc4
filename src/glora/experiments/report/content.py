"""What a report says, worked out once from the groups: tables, charts, caveats, failures, where the runs come from.

`report` writes it as markdown and into the terminal, `html_report` as a page; neither adds anything of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.records.schema import RunRecord
from glora.experiments.report.caveats import caveats
from glora.experiments.report.number_format import bytes_text, short_name
from glora.experiments.report.pictures import Charts, charts
from glora.experiments.report.summary import NAMED_BY_GROUP, NAMED_BY_ROW, GroupSummary, differing_settings
from glora.experiments.report.tables import TextTable, claims_overview, group_tables
from glora.experiments.search.record import SearchRecord, tuning_table
from glora.messages import pluralize

TITLE = "Rank allocation compared"
CAVEATS_TITLE = "What limits this comparison"
FAILURES_TITLE = "Failed runs"
PROVENANCE_TITLE = "How the runs were made"
SHARED_SETTINGS_TITLE = "All other settings were the same in all runs:"


@dataclass(frozen=True, eq=False)
class Section:
    """What is said about one group; all texts are plain, without any markup."""

    group: GroupSummary
    heading: str
    tables: tuple[TextTable, ...]
    charts: Charts
    caveats: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """What a report says.

    Attributes:
        summary: how many runs there are, and where they come from.
        overview: the verdicts on the claims for GLoRA side by side; None where there is one comparison at most.
        sections: one a group.
        provenance: machines, versions, commits, data, and the settings that were compared or differ: one line each.
        shared_settings: the settings that are the same in all runs, with their meaning.
    """

    summary: str
    overview: TextTable | None
    sections: tuple[Section, ...]
    provenance: tuple[str, ...]
    shared_settings: TextTable


def report_content(groups: Sequence[GroupSummary], search: SearchRecord | None = None) -> ReportContent:
    """All that a report says.

    Args:
        groups: what is compared; at least one has a finished run.
        search: how the settings were found, if they were searched.
    """
    finished = [run for group in groups for run in group.finished]
    failed = [run for group in groups for run in group.failures]
    configs = [run.config for run in finished]
    named = (*NAMED_BY_GROUP, *NAMED_BY_ROW)
    different = differing_settings(configs, ignored=named)
    recorded = [name for name, setting in SETTINGS.items() if setting.recorded]
    shared = [name for name in recorded if name not in (*named, *different)]
    return ReportContent(
        f"{pluralize(len(finished), 'finished run')}, {len(failed)} failed. Made from the records in `runs/` by "
        "`glora report`, which trains nothing.",
        _overview(groups),
        tuple(_section(group, search) for group in groups),
        (*_provenance_lines(finished), *(f"{name}: {_values(configs, name)}" for name in (*named, *different))),
        TextTable(
            SHARED_SETTINGS_TITLE,
            ("setting", "value", "meaning"),
            tuple((name, _setting_text(configs[0].setting(name)), SETTINGS[name].description) for name in shared),
            words=("setting", "value", "meaning"),
        ),
    )


def heading(group: GroupSummary) -> str:
    """`rte · microsoft/deberta-v3-base · rank 8`."""
    return f"{short_name(group.task)} · {short_name(group.model)} · rank {group.rank}"


def first_line(error: str | None) -> str:
    """An error's first line, which a reader can do with."""
    return (error or "unknown error").strip().splitlines()[0]


def _overview(groups: Sequence[GroupSummary]) -> TextTable | None:
    table = claims_overview([(heading(group), group) for group in groups])
    return table if len(table.rows) > 1 and len(groups) > 1 else None


def _section(group: GroupSummary, search: SearchRecord | None) -> Section:
    failures = (
        f"{run.config.method}, seed {run.config.seed} failed: {first_line(run.error)}" for run in group.failures
    )
    tuning = tuning_table(search, group.task, group.model) if search else None
    tables = (*group_tables(group), *([tuning] if tuning else []))
    return Section(group, heading(group), tables, charts(group), tuple(caveats(group)), tuple(failures))


def _provenance_lines(runs: Sequence[RunRecord]) -> list[str]:
    """Machines, versions, git states, data and measures of memory; each value once."""
    machines = [run.provenance.machine for run in runs]
    described = (
        ", ".join(
            part
            for part in (
                machine.cpu,
                pluralize(machine.cores, "core"),
                bytes_text(machine.memory_bytes) if machine.memory_bytes else "",
                machine.accelerator or "no accelerator",
                pluralize(machine.torch_threads, "torch thread") if machine.torch_threads else "",
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


def _values(configs: Sequence[RunConfig], name: str) -> str:
    return ", ".join(dict.fromkeys(_setting_text(config.setting(name)) for config in configs))


def _setting_text(value: object) -> str:
    if value is None:
        return "default"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return short_name(value) if isinstance(value, str) else f"{value}"
