"""An experiment file as it was understood, before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from glora.experiments.config import RunConfig
from glora.experiments.data.registry import TASKS, reads_data_dir
from glora.experiments.estimate import Estimate, ExpectedRun
from glora.experiments.experiment import PROPOSED, REFERENCE, ResolvedExperiment
from glora.experiments.models.registry import MODELS
from glora.experiments.number_format import short_name
from glora.experiments.search.ranges import SearchRange
from glora.experiments.training.progress import duration
from glora.messages import pluralize

FOLLOWS = {"total_rank": "matrices * rank", "warmup_steps": "one epoch", "lora_alpha": "2 * rank"}
"""Defaults that depend on the model or the data."""


def describe_experiment(experiment: ResolvedExperiment, estimate: Estimate, output: Path) -> RenderableType:
    """What each name stands for, which runs there are, and how long they will take as far as earlier runs tell."""
    roles = {REFERENCE: " (reference)", PROPOSED: " (proposed)"}
    source = experiment.source
    rows = [
        ("experiment", str(experiment.path)),
        ("models", "; ".join(_meaning(text, name, _source(name)) for text, name in experiment.models.items())),
        (
            "data sets",
            "; ".join(_meaning(t, name, _origin(name, source.data_dir)) for t, name in experiment.datasets.items()),
        ),
        (
            "metrics",
            "; ".join(_meaning(t, m.name, "") for t, m in experiment.metrics.items()) or "all that are measured",
        ),
        ("methods", ", ".join(name + roles.get(name, "") for name in experiment.methods)),
        ("seeds", ", ".join(map(str, experiment.seeds))),
        (
            "settings",
            ", ".join(f"{name}={value}" for name, value in source.settings.items()) or "all at their defaults",
        ),
    ]
    if experiment.ranges:
        config = next(config for config in experiment.configs if config.method == PROPOSED)
        rows.append(("ranges", f"{'; '.join(map(str, experiment.ranges))}. {_not_searched(experiment.ranges, config)}"))
    rows += [("runs", _count(experiment, estimate)), ("time", _time(estimate, output)), ("output", str(output))]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    for name, text in rows:
        grid.add_row(name, escape(text))
    return Group(grid, "", _runs(estimate))


def _meaning(text: str, name: str, origin: str) -> str:
    parts = [part for part in dict.fromkeys((name, origin)) if part and part != text]
    return f"{text} = {' = '.join(parts)}" if parts else text


def _source(model: str) -> str:
    """The hub id of a registered model; where an installed package keeps its weights says nothing to anybody."""
    return (MODELS[model].source or "") if model in MODELS else ""


def _origin(task: str, data_dir: str | None) -> str:
    if not reads_data_dir(task):
        return ""
    if data_dir:
        return f"the files in {data_dir}" if TASKS[task].kind == "generation" else f"GLUE's files in {data_dir}"
    return f"{TASKS[task].source} on the hub"


def _not_searched(ranges: Sequence[SearchRange], config: RunConfig) -> str:
    """`glora run` trains with one value of each; which, and that it does not search."""
    values = []
    for setting in dict.fromkeys(found.setting for found in ranges):
        value = config.setting(setting)
        values.append(f"{setting}={FOLLOWS[setting] if value is None and setting in FOLLOWS else value}")
    return f"`glora run` searches nothing, `glora search` does; it trains with {', '.join(values)}"


def _count(experiment: ResolvedExperiment, estimate: Estimate) -> str:
    factors = (
        pluralize(len(experiment.models), "model"),
        pluralize(len(experiment.datasets), "data set"),
        pluralize(len(experiment.methods), "method"),
        pluralize(len(experiment.seeds), "seed"),
    )
    finished = len(estimate.runs) - len(estimate.to_make)
    left = "" if not finished else f"; {finished} already finished, {len(estimate.to_make) or 'nothing is'} left"
    return f"{len(estimate.runs)} = {' × '.join(factors)}{left}{' to run' if finished and not estimate.to_make else ''}"


def _time(estimate: Estimate, output: Path) -> str:
    if not estimate.to_make:
        return "none"
    unknown = sum(run.seconds is None for run in estimate.to_make)
    if estimate.seconds is None:
        return f"unknown: no finished run in {output} is of the same model and data"
    rest = f"; unknown for {unknown} of {pluralize(len(estimate.to_make), 'run')}" if unknown else ""
    return f"about {duration(estimate.seconds)}, judging by the finished runs in {output}{rest}"


def _runs(estimate: Estimate) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("model", "data set", "method"):
        table.add_column(header)
    for header in ("seeds", "steps", "to run", "time"):
        table.add_column(header, justify="right")
    kind = {run.config.key: (run.config.model, run.config.task, run.config.method) for run in estimate.runs}
    order = {name: place for place, name in enumerate(dict.fromkeys(kind.values()))}
    runs = sorted(estimate.runs, key=lambda run: order[kind[run.config.key]])
    for (model, task, method), group in groupby(runs, key=lambda run: kind[run.config.key]):
        table.add_row(*map(escape, (short_name(model), short_name(task), method)), *_numbers(list(group)))
    if any(run.steps is None for run in estimate.runs):
        table.caption = "How many steps a run has is known when its data is read."
        table.caption_justify = "left"
    return table


def _numbers(runs: Sequence[ExpectedRun]) -> tuple[str, ...]:
    left = [run for run in runs if not run.finished]
    seconds = [run.seconds for run in left if run.seconds is not None]
    steps = runs[0].steps
    return (
        ",".join(str(run.config.seed) for run in runs),
        "?" if steps is None else f"{steps:,}",
        str(len(left)),
        "–" if not left else duration(sum(seconds)) if len(seconds) == len(left) else "?",
    )
