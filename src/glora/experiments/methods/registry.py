"""The methods that can be compared, and their variants.

`glora:budget=parameters:keep=svd` is GLoRA with these two settings in place of those that all methods share. So variants of
one method can be compared side by side, and each be tuned by itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.errors import errors_of
from glora.experiments.methods.base import Method
from glora.experiments.methods.entries import ENTRIES, RULES
from glora.messages import did_you_mean

METHODS: dict[str, Method] = {method.name: method for method in ENTRIES}

SEPARATOR = ":"

OF_TRAINING = ("lora_alpha", "lora_dropout", "learning_rate", "weight_decay")
"""Settings of training that a variant may change. Others, such as the rank, say what is compared, on what, and how long."""


def find_method(name: str) -> Method:
    """Return the method of this name, or the variant.

    Raises:
        ValueError: there is none, naming the nearest; or see `_variant`.
    """
    base, settings = split_variant(name)
    if base not in METHODS:
        near = f"; did you mean 'glora:rule={base}'?" if base in RULES else did_you_mean(base, METHODS)
        raise ValueError(f"unknown method {base!r}{near or '.'} Methods: {', '.join(METHODS)}")
    return _variant(METHODS[base], settings) if settings else METHODS[base]


def split_variant(name: str) -> tuple[str, str]:
    """Split `glora:budget=parameters` into `glora` and `:budget=parameters`, which is empty for a method itself."""
    base, separator, settings = name.partition(SEPARATOR)
    return base.strip(), separator + settings


def named_settings(name: str) -> set[str]:
    """Return the settings that the name of a variant gives; a record may have one that this version does not know."""
    return {part.partition("=")[0] for part in split_variant(name)[1].split(SEPARATOR) if part}


def method_title(config: RunConfig) -> str:
    """Return the name of a run's method in reports, without its settings: `GLoRA by spectrum`."""
    method = METHODS.get(split_variant(config.method)[0])
    if method is None:
        return config.method
    return f"{method.title} by {RULES[config.allocation.rule][0]}" if "rule" in method.settings else method.title


def method_summary(config: RunConfig) -> str:
    """Return what a run's method does, in one line; empty for a method that this version does not have."""
    name = split_variant(config.method)[0]
    if name == "glora":
        return RULES[config.allocation.rule][1]
    return METHODS[name].summary if name in METHODS else ""


def _variant(method: Method, text: str) -> Method:
    """Return the variant of a method with the settings `:NAME=VALUE...`.

    Two spellings of one variant are one method: settings are in the order of `SETTINGS`, values as they are stored.

    Raises:
        ValueError: the text has another form, or it gives a setting that the method does not read, one twice, or a value
            that is not allowed.
    """
    own = {*method.settings, *method.variant_settings, *OF_TRAINING}
    known = [name for name in SETTINGS if name in own]
    where = f"method {method.name + text!r}"
    given: dict[str, str] = {}
    for part in text.removeprefix(SEPARATOR).split(SEPARATOR):
        setting, equals, value = (piece.strip() for piece in part.partition("="))
        if not (setting and equals and value):
            example = "budget=parameters" if "budget" in method.settings else "learning_rate=1e-3"
            raise ValueError(
                f"{where}: {part!r} is not a setting; write {method.name}{SEPARATOR}NAME=VALUE, such as "
                f"{method.name}{SEPARATOR}{example}"
            )
        if setting not in known:
            near = did_you_mean(setting, known) or "."
            raise ValueError(
                f"{where}: {method.name} has no own setting {setting!r}{near} Settings: {', '.join(known)}"
            )
        if setting in given:
            raise ValueError(f"{where}: {setting} is given twice; give it once")
        given[setting] = value
    try:
        config = RunConfig.model_validate(given)
    except ValueError as error:
        raise ValueError(f"{where}: {'; '.join(errors_of(error))}") from error
    fixed = {setting: config.setting(setting) for setting in known if setting in given}
    written = [f"{setting}={_written(value)}" for setting, value in fixed.items()]
    return dataclasses.replace(
        method,
        name=SEPARATOR.join([method.name, *written]),
        summary=f"{method.name} with {', '.join(written)}.",
        aliases=(),
        fixed=fixed,
    )


def _written(value: Any) -> str:
    """The text that is read as this value."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
