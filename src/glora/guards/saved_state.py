"""The schema of an allocator's saved state: the errors of a damaged or older one are reported before anything changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from glora.reallocation import Reallocation

STATE_VERSION = 1


def check_saved_state(state: object) -> None:
    """Check what `RankAllocator.load_state_dict` is given.

    Raises:
        ValueError: the state is of another version, a field is missing, or values are damaged or contradict each other.
    """
    if not isinstance(state, Mapping):
        raise _error([f"it is a {type(state).__name__}, not a dictionary"])
    if state.get("version") != STATE_VERSION:
        raise _error([f"version {state.get('version')!r}, and this glora reads {STATE_VERSION}"])
    if missing := [name for name in _FIELDS if name not in state]:
        raise _error([f"{', '.join(missing)} missing"])
    rules = {**_FIELDS, **{name: rule for name, rule in _OPTIONAL.items() if state.get(name) is not None}}
    errors = [f"{name} must be {rule}" for name, (rule, kept) in rules.items() if not kept(state[name])]
    if not errors:
        errors = [error for error, found in _contradictions(state).items() if found]
    if errors:
        raise _error(errors)


def _error(errors: list[str]) -> ValueError:
    return ValueError(
        f"the allocator's state cannot be loaded: {'; '.join(errors)}. Resume from another checkpoint, or start a new run"
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_norm(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _by_name(kept: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, Mapping) and all(isinstance(k, str) and kept(v) for k, v in value.items())


def _is_reallocation(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, Mapping) or set(value) != {field.name for field in dataclasses.fields(Reallocation)}:
        return False
    kept, names = value["energy_kept"], value["without_adapter"]
    counts = [count for name, count in value.items() if name not in ("energy_kept", "without_adapter")]
    return (
        all(map(_is_count, counts))
        and isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
        and (kept is None or _is_norm(kept))
    )


_COUNT = ("an int of at least 0", _is_count)
_RANKS = ("a rank of at least 0 for each matrix", _by_name(_is_count))
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "config": ("a dictionary", _by_name(lambda _: True)),
    "steps": _COUNT,
    "norms": ("a finite number of at least 0 for each matrix", _by_name(_is_norm)),
    "recorded_steps": _COUNT,
    "non_finite_steps": _COUNT,
    "non_finite_norms": ("a count for each matrix", _by_name(_is_count)),
    "recording": ("true or false", lambda value: isinstance(value, bool)),
    "allocated": ("true or false", lambda value: isinstance(value, bool)),
    "reallocations": _COUNT,
    "initial_ranks": _RANKS,
    "ranks": _RANKS,
    "scalings": ("a finite number for each matrix", _by_name(_is_number)),
    "reallocation": ("the last reallocation, or null", _is_reallocation),
}

_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "sketch_ratios": (
        "a list of numbers, null where none was measured",
        lambda value: isinstance(value, list) and all(x is None or isinstance(x, int | float) for x in value),
    ),
}


def _contradictions(state: Mapping[str, Any]) -> dict[str, bool]:
    reallocated = state["reallocations"] > 0
    return {
        "no matrix has a rank": not any(state["ranks"].values()),
        "ranks and initial_ranks are of other matrices": state["ranks"].keys() != state["initial_ranks"].keys(),
        "scalings do not have every matrix with a rank": any(
            state["ranks"][n] and n not in state["scalings"] for n in state["ranks"]
        ),
        "norms are of matrices that ranks does not have": not state["norms"].keys() <= state["ranks"].keys(),
        "norms and non_finite_norms are of other matrices": state["norms"].keys() != state["non_finite_norms"].keys(),
        "allocated and reallocations contradict each other": state["allocated"] != reallocated,
        "reallocation and reallocations contradict each other": (state["reallocation"] is not None) != reallocated,
        "more recorded_steps than steps": state["recorded_steps"] > state["steps"],
        "more non_finite_steps than recorded_steps": state["non_finite_steps"] > state["recorded_steps"],
    }
