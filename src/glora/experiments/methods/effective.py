"""Effective values of settings, as a report shows them: defaults filled in, settings without effect left out."""

from __future__ import annotations

from glora.experiments.config import ALLOCATION_SETTINGS
from glora.experiments.methods.base import Schedule
from glora.experiments.methods.registry import find_method
from glora.experiments.number_format import short_name
from glora.experiments.records.schema import RunRecord
from glora.messages import pluralize

OF_WRITTEN_ANSWERS = ("max_new_tokens", "temperature")


def effective_value(run: RunRecord, name: str) -> str | None:
    """Return the value that a setting had in a run, as text; None where it had no effect."""
    config = run.config
    if name in OF_WRITTEN_ANSWERS and "perplexity" not in run.final:
        return None
    if name in ALLOCATION_SETTINGS and name not in _read(run):
        return None
    value = config.setting(name)
    if value is None:
        return _default(run, name)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return short_name(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else f"{value}"


def _read(run: RunRecord) -> frozenset[str]:
    try:
        return find_method(run.config.method).reads(run.config)
    except ValueError:  # a method that this version does not have
        return frozenset(ALLOCATION_SETTINGS)


def _default(run: RunRecord, name: str) -> str | None:
    """The value behind a setting that was not given."""
    config, allocation = run.config, run.config.allocation
    if name == "lora_alpha":
        return f"{config.alpha:g}"
    if name == "train_limit":
        return f"all {run.examples['train']:,}" if "train" in run.examples else "all"
    if name == "average_rank" and allocation.total_rank is None and allocation.energy is None:
        return f"{config.rank}"
    if name == "warmup_steps" and "train" in run.examples:
        schedule = Schedule.of(run.examples["train"], config.batch_size, config.epochs)
        return pluralize(schedule.warmup_steps(allocation), "step")
    return {
        "target_modules": "every linear layer of the encoder or decoder",
        "eval_limit": "all",
        "group_by_length": "no",
        "max_new_tokens": "512",
        "temperature": "greedy",
        "max_rank": "min(d_in, d_out)",
        "keep": allocation.columns_kept,
        "budget": allocation.budget_unit,
        "reallocate_every": "one reallocation",
    }.get(name)
