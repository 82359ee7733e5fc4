"""Which values a search may give to which settings: per method, and whether training can have them.

Every method is tuned in the settings that it looks at, and in no others: `lora` has a learning rate, and no beta.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from glora.experiments.config import ALLOCATION_SETTINGS, RunConfig
from glora.experiments.errors import collect
from glora.experiments.methods.base import Method, Schedule
from glora.experiments.report.number_format import settings_text
from glora.experiments.search.ranges import SearchRange, parse_range

if TYPE_CHECKING:
    from optuna import Trial

DEFAULT_RANGES = {"learning_rate": "5e-5-5e-3", "beta": "0.8-0.99", "warmup_steps": "0.1-0.5"}
"""As an experiment file writes them. A warm-up below 1 is a share of all steps, so that it fits trainings of any length."""

DEFAULT_BUDGETS = (0.5, 0.75, 1.0)
"""total_rank as a share of uniform LoRA's, matrices · rank. None is above 1: a method must not win by a larger budget."""


def default_ranges(matrices: int, rank: int) -> tuple[SearchRange, ...]:
    """What is searched where nobody says: learning_rate, beta, total_rank and warmup_steps.

    Args:
        matrices: adapted matrices of the model.
        rank: of uniform LoRA.
    """
    budgets = tuple(dict.fromkeys(max(1, round(share * matrices * rank)) for share in DEFAULT_BUDGETS))
    total_rank = SearchRange("total_rank", "categorical", choices=budgets)
    learning_rate, beta, warmup_steps = (parse_range(setting, text) for setting, text in DEFAULT_RANGES.items())
    return learning_rate, beta, total_rank, warmup_steps


def searched_by(method: Method, ranges: Sequence[SearchRange]) -> tuple[SearchRange, ...]:
    """The ranges of the settings that a method looks at, and does not have of its own."""
    ignored = {*(ALLOCATION_SETTINGS - method.settings), *method.fixed}
    return tuple(found for found in ranges if found.setting not in ignored)


def suggest(trial: Trial, ranges: Sequence[SearchRange]) -> dict[str, Any]:
    """Setting -> the value that a trial gives it."""
    for found in ranges:
        if found.kind == "categorical":
            trial.suggest_categorical(found.setting, tuple(map(_choice, found.choices)))
        elif found.kind == "integer":
            trial.suggest_int(found.setting, int(found.low or 0), int(found.high or 0), log=found.log)
        else:
            trial.suggest_float(found.setting, found.low or 0.0, found.high or 0.0, log=found.log)
    return chosen(trial.params, ranges)


def chosen(params: Mapping[str, Any], ranges: Sequence[SearchRange]) -> dict[str, Any]:
    """The settings of a trial, of its parameters as Optuna keeps them."""
    values = {}
    for found in ranges:
        value = params[found.setting]
        texts = {_choice(choice): choice for choice in found.choices}
        values[found.setting] = texts[value] if found.kind == "categorical" else value
    return values


def combinations(ranges: Sequence[SearchRange]) -> list[dict[str, Any]]:
    """Every combination of the choices, as Optuna keeps the values; none where a range is an interval."""
    if not ranges or any(found.kind != "categorical" for found in ranges):
        return []
    names = [found.setting for found in ranges]
    return [
        dict(zip(names, values)) for values in itertools.product(*(map(_choice, found.choices) for found in ranges))
    ]


def _choice(value: Any) -> Any:
    """Optuna keeps plain values; names of matrices are written with commas, as on the command line."""
    return ",".join(value) if isinstance(value, tuple) else value


def range_faults(method: Method, base: RunConfig, ranges: Sequence[SearchRange], examples: int) -> list[str]:
    """Ends of ranges that no training of this method can have, whatever the other searched settings are.

    Args:
        method: the method.
        base: its settings that are not searched.
        ranges: those that are.
        examples: training examples, from which the number of steps follows.
    """
    ends = {found.setting: _ends(found) for found in ranges}
    corners = [dict(zip(ends, values)) for values in itertools.product(*ends.values())]
    judged = [(corner, config_faults(method, base, corner, examples)) for corner in corners]
    everywhere = [fault for fault in judged[0][1] if all(fault in found for _, found in judged)]
    if everywhere:
        return [f"{method.name}: {fault}" for fault in everywhere]
    hopeless = all(found for _, found in judged)
    faults = []
    for setting, values in ends.items():
        for value in values:
            found = [fault for corner, fault in judged if corner[setting] == value]
            # Where nothing can be trained, an end is to blame only if it has one fault whatever the others are.
            blamed = [fault for fault in found[0] if not hopeless or all(fault in each for each in found)]
            if all(found) and blamed:
                faults.append(f"{setting}={value} can never be trained with {method.name}: {blamed[0]}")
    if hopeless and not faults:
        corner, refused = judged[0]
        ends_text = settings_text(corner)
        faults.append(f"{method.name} can be trained with no values of these ranges; {ends_text}: {refused[0]}")
    return faults


def config_faults(method: Method, base: RunConfig, values: Mapping[str, Any], examples: int) -> list[str]:
    """What is wrong with one choice of values."""
    faults: list[str] = []
    config = collect(lambda: base.with_settings(values), faults)
    if config is None:
        return faults
    schedule = Schedule.of(examples, config.batch_size, config.epochs)
    return [*method.setting_faults(config), *method.schedule_faults(config, schedule)]


def _ends(found: SearchRange) -> tuple[Any, ...]:
    if found.kind == "categorical":
        return found.choices
    convert = int if found.kind == "integer" else float
    return tuple(convert(bound) for bound in (found.low, found.high) if bound is not None)
