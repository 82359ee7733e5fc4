"""The search space of a method: the settings that it reads, and values that can be trained.

`lora` is tuned in its learning rate, and `glora` in beta too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Trial

from glora.experiments.config import ALLOCATION_SETTINGS, RunConfig
from glora.experiments.errors import collect
from glora.experiments.methods.base import Method, Schedule
from glora.experiments.number_format import settings_text
from glora.experiments.search.ranges import SearchRange, parse_range

DEFAULT_RANGES = {"learning_rate": "5e-5-5e-3", "beta": "0.8-0.99", "warmup_steps": "0.1-0.5"}
"""As an experiment file writes them. A warm-up below 1 is a share of all steps, so that it fits trainings of any length."""

DEFAULT_BUDGETS = (0.5, 0.75, 1.0)
"""total_rank as a share of uniform LoRA's, matrices · rank. None is above 1: a method must not win by a larger budget."""


def default_ranges(matrices: int, rank: int) -> tuple[SearchRange, ...]:
    """Return the ranges of a search without any: learning_rate, beta, total_rank and warmup_steps.

    Args:
        matrices: number of adapted matrices of the model.
        rank: of uniform LoRA.
    """
    budgets = tuple(dict.fromkeys(max(1, round(share * matrices * rank)) for share in DEFAULT_BUDGETS))
    total_rank = SearchRange("total_rank", "categorical", choices=budgets)
    learning_rate, beta, warmup_steps = (parse_range(setting, text) for setting, text in DEFAULT_RANGES.items())
    return learning_rate, beta, total_rank, warmup_steps


def searched_by(method: Method, base: RunConfig, ranges: Sequence[SearchRange]) -> tuple[SearchRange, ...]:
    """Return the ranges of settings that a method reads, and does not fix itself.

    Args:
        method: the method.
        base: its settings that are not searched.
        ranges: the ranges that all methods share.
    """
    any_rule = {"rule", "signal"} & {found.setting for found in ranges} - method.fixed.keys()
    ignored = {*(ALLOCATION_SETTINGS - (method.settings if any_rule else method.reads(base))), *method.fixed}
    return tuple(found for found in ranges if found.setting not in ignored)


def suggest(trial: Trial, ranges: Sequence[SearchRange]) -> dict[str, Any]:
    """Return setting -> the value that a trial gives it."""
    for found in ranges:
        if found.kind == "categorical":
            trial.suggest_categorical(found.setting, tuple(map(_choice, found.choices)))
        elif found.kind == "integer":
            trial.suggest_int(found.setting, int(found.low or 0), int(found.high or 0), log=found.log)
        else:
            trial.suggest_float(found.setting, found.low or 0.0, found.high or 0.0, log=found.log)
    return chosen(trial.params, ranges)


def chosen(params: Mapping[str, Any], ranges: Sequence[SearchRange]) -> dict[str, Any]:
    """Return the settings of a trial from its parameters in Optuna."""
    values = {}
    for found in ranges:
        value = params[found.setting]
        texts = {_choice(choice): choice for choice in found.choices}
        values[found.setting] = texts[value] if found.kind == "categorical" else value
    return values


def combinations(ranges: Sequence[SearchRange]) -> list[dict[str, Any]]:
    """Return every combination of the choices as Optuna's parameters; none if a range is an interval."""
    if not ranges or any(found.kind != "categorical" for found in ranges):
        return []
    names = [found.setting for found in ranges]
    return [
        dict(zip(names, values)) for values in itertools.product(*(map(_choice, found.choices) for found in ranges))
    ]


def _choice(value: Any) -> Any:
    """Return a choice as Optuna keeps it: names of matrices are joined by commas, as on the command line."""
    return ",".join(value) if isinstance(value, tuple) else value


def range_errors(method: Method, base: RunConfig, ranges: Sequence[SearchRange], examples: int) -> list[str]:
    """Return an error for each bound of a range with which no training of this method is possible.

    Args:
        method: the method.
        base: its settings that are not searched.
        ranges: the settings that are.
        examples: number of training examples, which gives the number of steps.
    """
    ends = {found.setting: _ends(found) for found in ranges}
    corners = [dict(zip(ends, values)) for values in itertools.product(*ends.values())]
    checked = [(corner, config_errors(method, base, corner, examples)) for corner in corners]
    everywhere = [error for error in checked[0][1] if all(error in found for _, found in checked)]
    if everywhere:
        return [f"{method.name}: {error}" for error in everywhere]
    all_fail = all(found for _, found in checked)
    errors = []
    for setting, values in ends.items():
        for value in values:
            found = [error for corner, error in checked if corner[setting] == value]
            # If nothing can be trained, blame a bound only for an error that it has with all other values.
            blamed = [error for error in found[0] if not all_fail or all(error in each for each in found)]
            if all(found) and blamed:
                errors.append(f"{setting}={value} can never be trained with {method.name}: {blamed[0]}")
    if all_fail and not errors:
        corner, refused = checked[0]
        ends_text = settings_text(corner)
        errors.append(f"{method.name} can be trained with no values of these ranges; {ends_text}: {refused[0]}")
    return errors


def config_errors(method: Method, base: RunConfig, values: Mapping[str, Any], examples: int) -> list[str]:
    """Return what is wrong with one choice of values."""
    errors: list[str] = []
    config = collect(lambda: base.with_settings(values), errors)
    if config is None:
        return errors
    schedule = Schedule.of(examples, config.batch_size, config.epochs)
    return [*method.setting_errors(config), *method.schedule_errors(config, schedule)]


def _ends(found: SearchRange) -> tuple[Any, ...]:
    if found.kind == "categorical":
        return found.choices
    convert = int if found.kind == "integer" else float
    return tuple(convert(bound) for bound in (found.low, found.high) if bound is not None)
