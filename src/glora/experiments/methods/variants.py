"""Variants of a method: its name, and settings that it has in place of those that all methods share.

`glora:budget=parameters:relative_to=weight` is GLoRA with these two settings. So variants of one method can be compared
side by side, and each be tuned by itself. A variant is a method of its own wherever methods are told apart.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.errors import faults_of

if TYPE_CHECKING:
    from glora.experiments.methods.base import Method, Schedule

SEPARATOR = ":"

OF_TRAINING = ("lora_alpha", "lora_dropout", "learning_rate", "weight_decay")
"""Settings that any method may have of its own. Others, such as the rank, say what is compared, on what, or for how long."""


def split_variant(name: str) -> tuple[str, str]:
    """`glora:budget=parameters` is `glora` and `:budget=parameters`; a method's own name has nothing behind it."""
    base, separator, settings = name.partition(SEPARATOR)
    return base.strip(), separator + settings


def variant_of(method: Method, text: str) -> Method:
    """The variant of a method that has these settings.

    Args:
        method: the method.
        text: `:NAME=VALUE` for each of them.

    Returns:
        A method that is called like this, with its settings in the order of `RunConfig` and its values as they are stored:
        two spellings of one variant are one method.

    Raises:
        ValueError: it is not written so, or it names a setting that the method does not look at, one twice, or a value
            that the setting cannot have.
    """
    known = [name for name in SETTINGS if name in {*method.settings, *method.variant_settings, *OF_TRAINING}]
    where = f"method {method.name + text!r}"
    given: dict[str, Any] = {}
    for part in text.removeprefix(SEPARATOR).split(SEPARATOR):
        setting, equals, value = (piece.strip() for piece in part.partition("="))
        if not (setting and equals and value):
            raise ValueError(
                f"{where}: {part!r} is no setting; write {method.name}{SEPARATOR}NAME=VALUE, such as {_example(method)}"
            )
        if setting not in known:
            near = difflib.get_close_matches(setting, known, n=2)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ValueError(
                f"{where}: {setting!r} is no setting of {method.name}'s own: {hint}There are {', '.join(known)}"
            )
        if setting in given:
            raise ValueError(f"{where}: {setting} is given twice; give it once")
        given[setting] = _validated(setting, value, where)
    fixed = {setting: given[setting] for setting in known if setting in given}

    def with_settings(config: RunConfig) -> RunConfig:
        return config.with_settings(fixed)

    def schedule_faults(config: RunConfig, schedule: Schedule) -> list[str]:
        return method.schedule_faults(with_settings(config), schedule)

    return dataclasses.replace(
        method,
        name=method.name + "".join(f"{SEPARATOR}{setting}={_written(value)}" for setting, value in fixed.items()),
        summary=f"{method.name} with {', '.join(f'{setting}={_written(value)}' for setting, value in fixed.items())}.",
        aliases=(),
        fixed=fixed,
        setting_faults=lambda config: method.setting_faults(with_settings(config)),
        schedule_faults=schedule_faults,
    )


def _validated(setting: str, value: str, where: str) -> Any:
    try:
        return RunConfig.model_validate({setting: value}).setting(setting)
    except ValidationError as error:
        raise ValueError(f"{where}: {'; '.join(faults_of(error))}") from error


def _written(value: Any) -> str:
    """Read again, it is the same value."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _example(method: Method) -> str:
    example = "budget=parameters" if "budget" in method.settings else "learning_rate=1e-3"
    return f"{method.name}{SEPARATOR}{example}"
