"""The content of a report, worked out once: tables, charts, caveats, failures, where the runs come from.

`write` shows it as Markdown and in the terminal, `page` as a page; neither adds anything of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.methods.effective import effective_value
from glora.experiments.number_format import bytes_text, distinct_names
from glora.experiments.records.schema import RunRecord
from glora.experiments.report.cells import ReportTable
from glora.experiments.report.chart_style import ReportChart
from glora.experiments.report.charts import charts
from glora.experiments.report.sentences import caveats, conclusion
from glora.experiments.report.summary import NAMED_BY_GROUP, NAMED_BY_ROW, GroupSummary, differing_settings
from glora.experiments.report.tables import group_tables, tuning_table
from glora.experiments.search.record import SearchRecord
from glora.messages import pluralize

TITLE = "Fine-tuning methods compared"
SUBTITLE = "Ways to fine-tune a pretrained model, trained and judged alike."
CAVEATS_TITLE = "What limits this comparison"
FAILURES_TITLE = "Failed runs"
PROVENANCE_TITLE = "How the runs were made"


@dataclass(frozen=True, eq=False)
class Section:
    """The part about one group; all texts are plain, without any markup.

    Attributes:
        conclusion: two or three sentences: what was compared, and what was shown.
    """

    heading: str
    conclusion: tuple[str, ...]
    tables: tuple[ReportTable, ...]
    charts: tuple[ReportChart, ...]
    caveats: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """A report.

    Attributes:
        sections: one a group.
        provenance: machines, versions, commits, data, and the settings that were compared or differ: one line each.
        shared_settings: the settings that are the same in all runs, with their meaning.
    """

    sections: tuple[Section, ...]
    provenance: tuple[str, ...]
    shared_settings: ReportTable


def report_content(groups: Sequence[GroupSummary], search: SearchRecord | None = None) -> ReportContent:
    """Return all that a report says.

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
    everyone = [run.config for run in (*finished, *failed)]
    tasks = distinct_names(config.task for config in everyone)
    return ReportContent(
        _with_distinct_pictures([_section(group, search) for group in groups]),
        (
            f"{pluralize(len(finished), 'finished run')}, {len(failed)} failed; made from the records in `runs/` by "
            "`glora report`, which trains nothing",
            *_provenance_lines(finished, tasks),
            *(f"{name}: {_values(finished, everyone, name)}" for name in (*named, *different)),
        ),
        ReportTable(
            "All other settings were the same in all runs:",
            ("setting", "value", "meaning"),
            tuple((name, text, SETTINGS[name].description) for name in shared if (text := _effective(finished, name))),
        ),
    )


def first_line(error: str | None) -> str:
    """Return the first line of an error."""
    return (error or "unknown error").strip().splitlines()[0]


def _section(group: GroupSummary, search: SearchRecord | None) -> Section:
    failures = (
        f"{run.config.method}, seed {run.config.seed} failed: {first_line(run.error)}" for run in group.failures
    )
    tuning = tuning_table(search, group.task, group.model) if search else None
    tables = (*group_tables(group), *([tuning] if tuning else []))
    return Section(group.heading, conclusion(group), tables, charts(group), tuple(caveats(group)), tuple(failures))


def _with_distinct_pictures(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Number the charts whose pictures would have the same file name."""
    taken: set[str] = set()

    def numbered(chart: ReportChart) -> ReportChart:
        choices = (f"{chart.name}-{i}" if i > 1 else chart.name for i in itertools.count(1))
        name = next(choice for choice in choices if choice not in taken)
        taken.add(name)
        return replace(chart, name=name)

    return tuple(replace(section, charts=tuple(map(numbered, section.charts))) for section in sections)


def _provenance_lines(runs: Sequence[RunRecord], tasks: Mapping[str, str]) -> Iterator[str]:
    """Machines, versions, git states, data and measures of memory; each value once."""
    dates = sorted(run.finished_at for run in runs)
    yield f"Finished between {dates[0]} and {dates[-1]}"
    facts: dict[str, dict[str, None]] = {}
    for run in runs:
        machine, git = run.provenance.machine, run.provenance.git
        parts = (
            machine.cpu,
            pluralize(machine.cores, "core"),
            bytes_text(machine.memory_bytes) if machine.memory_bytes else "",
            machine.accelerator or "no accelerator",
            pluralize(machine.torch_threads, "torch thread") if machine.torch_threads else "",
            machine.platform,
        )
        examples = ", ".join(f"{count:,} {split}" for split, count in run.examples.items())
        fingerprint = run.provenance.data_fingerprint
        for name, value in (
            ("Machine", ", ".join(filter(None, parts))),
            ("Versions", ", ".join(f"{name} {version}" for name, version in run.provenance.versions.items())),
            ("Commit of glora", git and git.commit[:12] + (" with uncommitted changes" if git.dirty else "")),
            (
                "Examples",
                run.examples
                and f"{tasks[run.config.task]}: {examples}" + (f" (fingerprint {fingerprint})" if fingerprint else ""),
            ),
            ("Peak memory is", run.peak_memory_source),
        ):
            values = facts.setdefault(name, {})
            if value:
                values[value] = None
    yield from (f"{name}: {value}" for name, values in facts.items() for value in values)


def _values(runs: Sequence[RunRecord], everyone: Sequence[RunConfig], name: str) -> str:
    """The values of a setting in all runs; those of models and tasks by names that tell them apart."""
    if name not in ("task", "model"):
        return _effective(runs, name)
    names = distinct_names(str(config.setting(name)) for config in everyone)
    return ", ".join(dict.fromkeys(names[str(run.config.setting(name))] for run in runs))


def _effective(runs: Sequence[RunRecord], name: str) -> str:
    return ", ".join(dict.fromkeys(text for run in runs if (text := effective_value(run, name)) is not None))
