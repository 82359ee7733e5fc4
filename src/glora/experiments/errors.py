"""Faults are gathered as sentences, so that a user hears of all of them at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from glora.experiments.config import RunConfig

T = TypeVar("T")


class ConfigurationError(ValueError):
    """What is wrong, all of it.

    Attributes:
        faults: one sentence each.
    """

    def __init__(self, faults: Sequence[str], *, where: str = "") -> None:
        self.faults = tuple(dict.fromkeys(faults))
        one = len(self.faults) == 1
        lines = self.faults[0] if one else "".join(f"\n  - {fault}" for fault in self.faults)
        count = "" if one else f"{len(self.faults)} things are wrong:"
        super().__init__(f"{where}: {count}{lines}" if where else f"{count}{lines}")


def attempt(find: Callable[[], T], faults: list[str], *, field: str = "") -> T | None:
    """What `find` returns; or None, and what it refused is added to the faults.

    Args:
        find: looks something up, or checks it.
        faults: gets a sentence, or several of a `ConfigurationError` or a configuration.
        field: where the fault is, before each sentence.
    """
    try:
        return find()
    except ValidationError as error:
        found = [_in_words(fault) for fault in error.errors()]
    except ConfigurationError as error:
        found = list(error.faults)
    except (ValueError, OSError) as error:
        found = [str(error)]
    faults += [f"{field}: {fault}" if field else fault for fault in found]
    return None


def repeated(what: str, values: Sequence[Any]) -> list[str]:
    """A fault that names the values which stand there more than once; none if there is no such value."""
    twice = [value for value in dict.fromkeys(values) if list(values).count(value) > 1]
    return [f"{what}: {', '.join(map(str, twice))} is given more than once"] if twice else []


def _in_words(fault: Any) -> str:
    """A fault of a configuration, with its value."""
    field = str(fault["loc"][0]) if fault["loc"] else "settings"
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, RunConfig.model_fields, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"{field}: there is no such setting{hint}"
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{field}={fault['input']!r}: {message}"
