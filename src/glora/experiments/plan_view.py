"""Show an experiment file as it was understood, and the plans of its comparisons, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table

from glora.experiments.config import ALLOCATION_SETTINGS, RunConfig
from glora.experiments.data.registry import TASKS, reads_data_dir
from glora.experiments.estimate import Estimate, ExpectedRun, Pace
from glora.experiments.experiment import PROPOSED, REFERENCE, ResolvedExperiment
from glora.experiments.methods.limits import start_rank
from glora.experiments.methods.registry import find_method
from glora.experiments.models.registry import MODELS
from glora.experiments.number_format import distinct_names
from glora.experiments.plan import Plan
from glora.experiments.search.ranges import SearchRange
from glora.experiments.training.progress import duration
from glora.messages import pluralize

if TYPE_CHECKING:  # it needs Optuna, which a comparison in one process does without
    from glora.experiments.search.sharing import Sharing

FOLLOWS = {
    "total_rank": "matrices * rank",
    "warmup_steps": "one epoch, or a quarter of the steps before a cut",
    "lora_alpha": "2 * rank",
}
"""Defaults that depend on the model or the data."""


def describe_plan(
    plan: Plan, sharing: Sharing | None = None, state: Mapping[str, int] | None = None, pace: Pace | None = None
) -> Table:
    """Return a table of what is trained on what, how long, how often, and where its records go.

    Args:
        plan: the comparison.
        sharing: the workers that share its runs.
        state: the number of runs by their state.
        pace: of its first run, from which the time of all is estimated.
    """
    configs = [run.config for run in plan.runs]
    config, schedule = configs[0], plan.runs[0].schedule
    counts = plan.task.example_counts.items()
    examples = ", ".join(f"{count:,} for {'training' if split == 'train' else split}" for split, count in counts)
    limited = " (limited)" if config.train_limit or config.eval_limit else ""
    per_epoch, total = pluralize(schedule.steps_per_epoch, "step"), pluralize(schedule.total_steps, "step")
    modules = ", ".join(config.target_modules or ()) or "every linear layer of the encoder or decoder"
    rows = [
        ("model", config.model),
        ("task", f"{config.task}: {examples}{limited}"),
        *([("", plan.task.reading)] if plan.task.reading else []),
        (
            "training",
            f"{config.epochs:g} {'epoch' if config.epochs == 1 else 'epochs'} of {per_epoch} = {total}, "
            f"{pluralize(config.batch_size, 'example')} each, at most {pluralize(config.max_length, 'token')}",
        ),
        (
            "",
            f"AdamW, {config.lr_scheduler} learning rate up to {config.learning_rate:g}, "
            f"weight decay {config.weight_decay:g}, {config.precision}",
        ),
        ("adapters", f"rank {config.rank}, alpha {config.alpha:g}, dropout {config.lora_dropout:g} on {modules}"),
    ]
    allocating = {c.method: c for c in configs if find_method(c.method).settings >= ALLOCATION_SETTINGS}
    rows += [
        (
            method,
            f"warm-up {pluralize(schedule.warmup_steps(c.allocation), 'step')}, {_rule(c)}, {c.allocation.budget_unit} budget, "
            f"keeps columns by {c.allocation.columns_kept}{_unpublished(c)}",
        )
        for method, c in allocating.items()
    ]
    methods, seeds = ([*dict.fromkeys(getattr(c, name) for c in configs)] for name in ("method", "seed"))
    factors = (
        f"{pluralize(len(methods), 'method')} ({', '.join(methods)})",
        f"{pluralize(len(seeds), 'seed')} ({', '.join(map(str, seeds))})",
    )
    rows += [("runs", _count(factors, len(plan.runs), len(plan.to_make)))]
    if pace is not None:
        rows += [("time", time_of(plan.steps_to_make, pace))]
    if sharing is not None and state is not None:
        where = f"as {sharing.name!r} in {sharing.storage.shown_url}, by {sharing.claim}"
        rows += [("shared", f"{where}: {', '.join(f'{count} {what}' for what, count in state.items() if count)}")]
    return facts_grid([*rows, ("output", str(plan.output))])


def describe_experiment(
    experiment: ResolvedExperiment, estimate: Estimate, output: Path, readings: Mapping[str, str] | None = None
) -> RenderableType:
    """Return the meaning of each name, which runs there are, and how long they take as far as earlier runs tell.

    Args:
        experiment: the file.
        estimate: of its runs.
        output: folder of the records.
        readings: custom data -> what it was taken for, where it was read.
    """
    roles = {REFERENCE: " (reference)", PROPOSED: " (proposed)"}
    source = experiment.source
    models = [_meaning(text, name, _hub_id(name)) for text, name in experiment.models.items()]
    datasets = [_meaning(text, name, _origin(name, source.data_dir)) for text, name in experiment.datasets.items()]
    tasks = distinct_names(readings or {})
    metrics = [_meaning(text, metric, "") for text, metric in experiment.metrics.items()]
    rows = [
        ("experiment", str(experiment.path)),
        ("models", "; ".join(models)),
        ("data sets", "; ".join(datasets)),
        *(("", f"{tasks[name]}: {reading}") for name, reading in (readings or {}).items()),
        ("metrics", "; ".join(metrics) or "all that are measured"),
        ("methods", ", ".join(name + roles.get(name, "") for name in experiment.methods)),
        ("seeds", ", ".join(map(str, experiment.seeds))),
        ("settings", ", ".join(f"{n}={v}" for n, v in source.settings.items()) or "all at their defaults"),
    ]
    if experiment.ranges:
        config = next(config for config in experiment.configs if config.method == PROPOSED)
        rows += [("ranges", f"{'; '.join(map(str, experiment.ranges))}. {_not_searched(experiment.ranges, config)}")]
    factors = (
        pluralize(len(experiment.models), "model"),
        pluralize(len(experiment.datasets), "data set"),
        pluralize(len(experiment.methods), "method"),
        pluralize(len(experiment.seeds), "seed"),
    )
    rows += [
        ("runs", _count(factors, len(estimate.runs), len(estimate.to_make))),
        ("time", _time(estimate, output)),
        ("output", str(output)),
    ]
    return Group(facts_grid(rows), "", _runs(estimate))


def time_of(steps: int, pace: Pace) -> str:
    """Return the time of so many steps."""
    if pace.seconds is None:
        return f"unknown: {pace.unknown}"
    return (
        f"about {duration(steps * pace.seconds)} of training at {pace.seconds:.2g} s a step, timed now with {pace.method}; "
        "loading and evaluations come on top"
    )


def facts_grid(rows: Iterable[tuple[str, str]]) -> Table:
    """Return names in bold with their texts."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    for name, text in rows:
        grid.add_row(name, text)
    return grid


def _count(factors: Sequence[str], runs: int, left: int) -> str:
    finished = f"; {runs - left} already finished, {left or 'nothing is'} left{'' if left else ' to run'}"
    return f"{runs} = {' × '.join(factors)}{finished if left < runs else ''}"


def _rule(config: RunConfig) -> str:
    allocation = config.allocation
    if allocation.cuts:
        average = allocation.average_rank or config.rank
        end = f"rank {average:g} on average"
        if allocation.energy is not None:
            end = f"{allocation.energy:.1%} of the energy"
        elif allocation.total_rank is not None:
            return f"rule {allocation.rule}, from {config.start_factor:g} times the average to {allocation.total_rank:,} ranks"
        return f"rule {allocation.rule}, from rank {start_rank(average, config.start_factor)} to {end}"
    return f"beta {allocation.beta:g}, signal {allocation.signal}"


def _unpublished(config: RunConfig) -> str:
    """The settings by which this run's GLoRA differs from the published one."""
    names = ("reallocate_every", "max_reallocations")
    values = {name: config.setting(name) for name in names}
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None)


def _meaning(text: str, name: str, origin: str) -> str:
    parts = [part for part in dict.fromkeys((name, origin)) if part and part != text]
    return f"{text} = {' = '.join(parts)}" if parts else text


def _hub_id(model: str) -> str:
    """The hub id of a registered model; the folder of an installed package's weights is of no interest."""
    return (MODELS[model].source or "") if model in MODELS else ""


def _origin(task: str, data_dir: str | None) -> str:
    if not reads_data_dir(task):
        return ""
    if data_dir:
        return f"the files in {data_dir}" if TASKS[task].kind == "generation" else f"GLUE's files in {data_dir}"
    return f"{TASKS[task].source} on the hub"


def _not_searched(ranges: Sequence[SearchRange], config: RunConfig) -> str:
    """Return the line that names the values `glora run` trains with instead of a search."""
    values = []
    for setting in dict.fromkeys(found.setting for found in ranges):
        value = config.setting(setting)
        values.append(f"{setting}={FOLLOWS[setting] if value is None and setting in FOLLOWS else value}")
    return f"`glora run` searches nothing, `glora search` does; it trains with {', '.join(values)}"


def _time(estimate: Estimate, output: Path) -> str:
    if not estimate.to_make:
        return "none"
    unknown = sum(run.seconds is None for run in estimate.to_make)
    if estimate.seconds is None:
        return f"unknown: no finished run in {output} is of the same model and data; `glora compare --plan` times a few steps"
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
    models, tasks = (distinct_names(run.config.setting(name) for run in runs) for name in ("model", "task"))
    for (model, task, method), group in groupby(runs, key=lambda run: kind[run.config.key]):
        table.add_row(models[model], tasks[task], method, *_numbers(list(group)))
    if any(run.steps is None for run in estimate.runs):
        table.caption = "The number of steps of a run is known when its data is read."
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
