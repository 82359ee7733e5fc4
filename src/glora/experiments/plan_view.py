"""A comparison's plan, as the user sees it before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from glora.experiments.config import ALLOCATION_SETTINGS
from glora.experiments.methods.registry import find_method
from glora.messages import pluralize

if TYPE_CHECKING:
    from glora.experiments.config import RunConfig
    from glora.experiments.plan import Plan
    from glora.experiments.search.sharing import Sharing


def describe_plan(plan: Plan, sharing: Sharing | None = None, state: Mapping[str, int] | None = None) -> Table:
    """What is trained on what, for how long, how often, and where it will lie.

    Args:
        plan: the comparison.
        sharing: with whom its runs are shared, if they are.
        state: how far they are.
    """
    configs = [run.config for run in plan.runs]
    config, schedule = configs[0], plan.runs[0].schedule
    examples = [
        f"{count:,} for {'training' if split == 'train' else split}"
        for split, count in plan.task.example_counts.items()
    ]
    limited = " (limited)" if config.train_limit or config.eval_limit else ""
    per_epoch, total = pluralize(schedule.steps_per_epoch, "step"), pluralize(schedule.total_steps, "step")
    training = (
        f"{config.epochs:g} {'epoch' if config.epochs == 1 else 'epochs'} of {per_epoch} = {total}, "
        f"{pluralize(config.batch_size, 'example')} each, at most {pluralize(config.max_length, 'token')}"
    )
    optimiser = (
        f"AdamW, {config.lr_scheduler} learning rate up to {config.learning_rate:g}, "
        f"weight decay {config.weight_decay:g}, {config.precision}"
    )
    adapters = f"rank {config.rank}, alpha {config.alpha:g}, dropout {config.lora_dropout:g} on " + (
        ", ".join(config.target_modules) if config.target_modules else "every linear layer of the encoder or decoder"
    )
    rows = [
        ("model", config.model),
        ("task", f"{config.task}: {', '.join(examples)}{limited}"),
        ("training", training),
        ("", optimiser),
        ("adapters", adapters),
    ]
    allocating = {c.method: c for c in configs if find_method(c.method).settings >= ALLOCATION_SETTINGS}
    rows += [
        (
            method,
            f"warm-up {pluralize(schedule.warmup_steps(c.allocation.warmup_steps), 'step')}, beta {c.allocation.beta:g}, "
            f"signal {c.allocation.signal}, {c.allocation.budget} budget, keeps columns by {c.allocation.keep}"
            f"{_unpublished(c)}",
        )
        for method, c in allocating.items()
    ]
    methods = list(dict.fromkeys(c.method for c in configs))
    seeds = list(dict.fromkeys(c.seed for c in configs))
    finished = len(plan.runs) - len(plan.to_make)
    runs = (
        f"{len(plan.runs)} = {pluralize(len(methods), 'method')} ({', '.join(methods)}) × "
        f"{pluralize(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"
    )
    if finished:
        left = "nothing is left to run" if not plan.to_make else f"{len(plan.to_make)} left"
        runs += f"; {finished} already finished, {left}"
    rows += [("runs", runs)]
    if sharing is not None and state is not None:
        rows += [
            ("shared", f"as {sharing.name!r} in {sharing.storage.shown_url}, by {sharing.claim}: {_how_far(state)}")
        ]
    rows += [("output", str(plan.output))]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for name, text in rows:
        table.add_row(name, escape(text))
    return table


def _how_far(state: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in state.items() if count)


def _unpublished(config: RunConfig) -> str:
    """The settings by which this run's GLoRA is another than the published one, so far as they are set."""
    names = ("reallocate_every", "max_reallocations")
    values = {name: config.setting(name) for name in names}
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None)
