"""Errors as sentences, collected so that a user sees all of them at once."""

from __future__ import annotations

import functools
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from glora.config import MAX_ERRORS, ConfigurationError
from glora.experiments.config import SETTINGS
from glora.messages import did_you_mean

S = TypeVar("S")
T = TypeVar("T")


def collect(find: Callable[[], T], errors: list[str], *, field: str = "") -> T | None:
    """Return the result of `find`, or None after adding its errors to `errors`.

    Args:
        find: looks something up or checks it.
        errors: receives one sentence for each error.
        field: place of the error, written before each sentence.
    """
    try:
        return find()
    except (ValueError, OSError) as error:
        errors += [f"{field}: {message}" if field else message for message in errors_of(error)]
        return None


def collect_each(find: Callable[[S], T], items: Iterable[S], errors: list[str], *, field: str = "") -> list[T]:
    """Return the results of `find` for the items without errors; for the others as `collect`."""
    found = [collect(functools.partial(find, item), errors, field=field) for item in items]
    return [each for each in found if each is not None]


def errors_of(error: Exception) -> list[str]:
    """Return one sentence for each thing that is wrong; a setting is named once."""
    if isinstance(error, ConfigurationError):
        return list(error.errors)
    if not isinstance(error, ValidationError):
        return [str(error)]
    by_setting: dict[tuple[int | str, ...], list[str]] = {}
    for detail in error.errors(include_url=False):
        place = tuple(part for part in detail["loc"] if part != "allocation")
        by_setting.setdefault(place[:1], _in_words(place, detail))
    return [sentence for sentences in by_setting.values() for sentence in sentences]


def repeated(what: str, values: Sequence[Any]) -> list[str]:
    """Return an error that names the values which occur more than once; empty if there are none."""
    twice = [str(value) for value, count in Counter(values).items() if count > 1]
    names = ", ".join(twice[:MAX_ERRORS]) + (", ..." if len(twice) > MAX_ERRORS else "")
    return [f"{what}: {names} is given more than once; keep one of them"] if twice else []


def shown(value: object) -> str:
    """Return `repr(value)`, shortened in the middle if it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 100
    return short.repr(value)


def message_of(detail: Any) -> str:
    """Return the message of one of pydantic's errors as the end of a sentence."""
    cause = detail.get("ctx", {}).get("error")
    message = str(cause if isinstance(cause, ValueError) else detail["msg"])
    return message[:1].lower() + message[1:]


def _in_words(place: Sequence[int | str], detail: Any) -> list[str]:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ConfigurationError):
        return list(cause.errors)
    name = str(place[0])[:100] if place else "settings"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return [f"{name}: there is no such setting{did_you_mean(name, SETTINGS)}"]
    choices = SETTINGS[name].choices if name in SETTINGS else ()
    return [f"{name}={shown(detail['input'])}: {message_of(detail)}{did_you_mean(str(detail['input'])[:100], choices)}"]
