"""Parse the ranges of a search: `"1e-4-5e-4"`, `"0.8-0.99"`, `"96,128,160"`, `"500-1500"`.

    LOW-HIGH        both whole numbers, of a setting that takes them: integers
    LOW-HIGH        with an exponent, or of a learning rate: real numbers on a log scale
    LOW-HIGH        anything else: real numbers on a linear scale
    A,B,C  or [A, B, C]   one of these values
    LOW-HIGH log    (or `linear`) gives the scale

`-` may also be a dash, `to` or `..`. `RunConfig` must accept every bound and value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError

from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.errors import collect_each, errors_of, repeated
from glora.messages import SYNONYMS, did_you_mean, plain

SEARCHABLE = tuple(name for name, setting in SETTINGS.items() if setting.group != "comparison")
"""Settings that change how well a method does; the others say what is compared, and on what."""

LOG_BY_NATURE = frozenset({"learning_rate"})

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_INTERVAL = re.compile(
    rf"({_NUMBER})\s*(?:-|–|—|\.\.|to)\s*({_NUMBER})\s*[(\[]?\s*(log|linear)?(?:[ -]?(?:scale|uniform))?\s*[)\]]?",
    re.IGNORECASE,
)


class SearchRangeError(ValueError):
    """A range that is malformed or contradicts itself."""


@dataclass(frozen=True)
class SearchRange:
    """Values of a setting that are searched; the fields are those of Optuna's `suggest_*`.

    Attributes:
        setting: a field of `RunConfig`.
        kind: "float", "integer" or "categorical".
        low: smallest value of an interval.
        high: largest value of an interval, inclusive.
        log: use a log scale.
        choices: the values of a categorical range.
    """

    setting: str
    kind: Literal["float", "integer", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.setting} {self.values}"

    @property
    def values(self) -> str:
        """The values in words, as in `one of 4, 8`."""
        if self.kind == "categorical":
            return f"one of {', '.join(map(str, self.choices))}"
        scale = "integer" if self.kind == "integer" else "log" if self.log else "linear"
        scale += ", log" if self.kind == "integer" and self.log else ""
        return f"{self.low:g} to {self.high:g} ({scale})"


def find_setting(name: str) -> str:
    """Find a setting by what people call it: `beta (EMA)` is `beta`, `Learning rate` is `learning_rate`.

    Raises:
        SearchRangeError: it is unknown; the message suggests the nearest.
    """
    spelled = SYNONYMS | {plain(field): field for field in SEARCHABLE}
    key = plain(re.sub(r"\(.*?\)", "", name))
    if key in spelled:
        return spelled[key]
    raise SearchRangeError(
        f"{name!r} is not a searchable setting{did_you_mean(name, SEARCHABLE)} ({', '.join(SEARCHABLE)})"
    )


def find_range(name: str, text: object) -> SearchRange:
    """Parse a name and a range as people write them: `beta (EMA)`, `0.8-0.99`.

    Raises:
        SearchRangeError: see `find_setting` and `parse_range`.
    """
    return parse_range(find_setting(name), text)


def find_ranges(given: Iterable[tuple[str, object]], errors: list[str], *, field: str = "") -> list[SearchRange]:
    """Parse names and ranges; errors, such as a setting with two ranges, become sentences after the name of their field."""
    found = collect_each(lambda pair: find_range(*pair), given, errors, field=field)
    errors += repeated(field or "range", [each.setting for each in found])
    return found


def parse_range(setting: str, text: object) -> SearchRange:
    """Parse the range of a setting: text as above, a list of values, or one value.

    Raises:
        SearchRangeError: malformed, empty, bounds in the wrong order, a log range that starts at or below 0, a repeated value,
            or a value that the setting does not accept.
    """
    if isinstance(text, list | bool):
        return _one_of(setting, text, text if isinstance(text, list) else [text])
    written = str(text).strip()
    interval = _INTERVAL.fullmatch(written)
    if interval:
        low, high, scale = interval.groups()
        return _between(setting, written, low, high, (scale or "").lower())
    return _one_of(setting, written, [part.strip() for part in written.split(",")] if written else [])


def _between(setting: str, written: str, low_text: str, high_text: str, scale: str) -> SearchRange:
    low, high = float(low_text), float(high_text)
    where = f"{setting}: the range {written!r}"
    if low > high:
        raise SearchRangeError(f"{where} has {low_text} below and {high_text} above; write '{high_text}-{low_text}'")
    if low == high:
        raise SearchRangeError(f"{where} is one value; write '{low_text}', or two bounds that differ")
    exponent = "e" in (low_text + high_text).lower()
    log = scale == "log" or (not scale and (exponent or setting in LOG_BY_NATURE))
    if log and low <= 0:
        linear = "" if scale == "log" else f", or say '{low_text}-{high_text} linear'"
        raise SearchRangeError(f"{where} is searched on a log scale, which {low_text} is not on; begin above 0{linear}")
    whole = low.is_integer() and high.is_integer() and "." not in low_text + high_text
    for bound in (low, high):
        _accepted(setting, bound, where)
    integer = float not in _types(setting) or (whole and _takes_whole_numbers(setting))
    return SearchRange(setting, "integer" if integer else "float", low=low, high=high, log=log)


def _takes_whole_numbers(setting: str) -> bool:
    """Return whether whole bounds mean whole numbers: for epochs, by its default, but not for a learning rate."""
    return int in _types(setting) or isinstance(SETTINGS[setting].default, int)


def _types(setting: str) -> tuple[Any, ...]:
    annotation = SETTINGS[setting].type
    return (annotation, *get_args(annotation))


def _one_of(setting: str, written: object, parts: list[Any]) -> SearchRange:
    where = f"{setting}: the range {written!r}"
    if not parts or "" in parts:
        what = "is empty" if not parts else "has a value missing"
        raise SearchRangeError(f"{where} {what}; write LOW-HIGH such as '0.8-0.99', or values such as '96,128,160'")
    choices = tuple(_accepted(setting, part, where) for part in parts)
    twice = sorted({str(choice) for choice in choices if choices.count(choice) > 1})
    if twice:
        raise SearchRangeError(f"{where} has {', '.join(twice)} more than once")
    return SearchRange(setting, "categorical", choices=choices)


def _accepted(setting: str, value: object, where: str) -> Any:
    """Return the value as the configuration holds it."""
    try:
        return RunConfig.model_validate({setting: value}).setting(setting)
    except ValidationError as error:
        raise SearchRangeError(f"{where}: {'; '.join(errors_of(error))}") from error
