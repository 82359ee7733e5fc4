"""The schema of an allocator's saved state: the errors of a damaged or older one are reported before anything changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from glora.config import is_int, is_number
from glora.reallocation import Reallocation

STATE_VERSION = 1
MAX_COUNT = 10**12
"""Steps, or parameters: beyond any training; a thousand steps a second take thirty years."""
MAX_RANK, MAX_SCALING = 2**20, 1e30
MAX_NORM = 3.4e38
"""Larger ones are inf in float32, in which the average is kept."""

Check = Callable[[Any], bool]


def check_saved_state(state: object) -> None:
    """Check what `RankAllocator.load_state_dict` is given."""
    if not isinstance(state, Mapping):
        raise _error([f"it is a {type(state).__name__}, not a dictionary"])
    if state.get("version") != STATE_VERSION:
        raise _error([f"version {state.get('version')!r}, and this glora reads {STATE_VERSION}"])
    if missing := [name for name in _FIELDS if name not in state and name != "sketch_ratios"]:
        raise _error([f"{', '.join(missing)} missing"])
    errors = [f"{name} must be {rule}" for name, (rule, kept) in _FIELDS.items() if not kept(state.get(name))]
    if errors := errors or [error for error, found in _contradictions(state).items() if found]:
        raise _error(errors)


def check_trainer_state(state: Any) -> None:
    """Check what a Trainer's state says of its steps and callbacks."""
    if not _is_count(state.global_step):
        raise ValueError(
            f"trainer_state.json has global_step={state.global_step!r:.40}, not a number of steps; resume from "
            "another checkpoint"
        )
    if not isinstance(state.stateful_callbacks, Mapping):
        raise ValueError("trainer_state.json has no dictionary in stateful_callbacks; resume from another checkpoint")


def _error(errors: list[str]) -> ValueError:
    return ValueError(
        f"the allocator's state cannot be loaded: {'; '.join(errors)}. Resume from another checkpoint, or start a new run"
    )


def _is_count(value: Any, most: int = MAX_COUNT) -> bool:
    return is_int(value, 0) and value <= most


def _within(least: float, most: float) -> Check:
    return lambda value: is_number(value, -math.inf) and least <= value <= most


def _by_name(kept: Check) -> Check:
    return lambda value: isinstance(value, Mapping) and all(isinstance(k, str) and kept(v) for k, v in value.items())


def _list_of(kept: Check) -> Check:
    return lambda value: isinstance(value, list | tuple) and all(map(kept, value))


def _or_null(kept: Check) -> Check:
    return lambda value: value is None or kept(value)


def _is_config(value: Any) -> bool:
    return _by_name(lambda _: True)(value) and _is_count(steps := value.get("warmup_steps")) and steps > 0


def _is_reallocation(value: Any) -> bool:
    others = {"energy_kept": _or_null(_within(0, 1)), "without_adapter": _list_of(lambda name: isinstance(name, str))}
    names = {field.name for field in dataclasses.fields(Reallocation)}
    return (
        isinstance(value, Mapping)
        and set(value) == names
        and all(others.get(name, _is_count)(value[name]) for name in names)
    )


_COUNT = (f"an int from 0 to {MAX_COUNT:,}", _is_count)
_RANKS = (f"a rank from 0 to {MAX_RANK:,} for each matrix", _by_name(lambda value: _is_count(value, MAX_RANK)))
_FLAG = ("true or false", lambda value: isinstance(value, bool))
_IS_NORM = _within(0, MAX_NORM)
_FIELDS: dict[str, tuple[str, Check]] = {
    "config": ("a configuration with its warmup_steps", _is_config),
    "steps": _COUNT,
    "norms": ("a number of at least 0 that float32 has, for each matrix", _by_name(_IS_NORM)),
    "recorded_steps": _COUNT,
    "non_finite_steps": _COUNT,
    "non_finite_norms": ("a count for each matrix", _by_name(_is_count)),
    "recording": _FLAG,
    "allocated": _FLAG,
    "reallocations": _COUNT,
    "initial_ranks": _RANKS,
    "ranks": _RANKS,
    "scalings": (f"a number up to {MAX_SCALING:g} for each matrix", _by_name(_within(-MAX_SCALING, MAX_SCALING))),
    "reallocation": ("the last reallocation, or null", _or_null(_is_reallocation)),
    "sketch_ratios": (
        "a list of numbers of at least 0, null where none was measured",
        _or_null(_list_of(_or_null(_IS_NORM))),
    ),
}


def _contradictions(state: Mapping[str, Any]) -> dict[str, bool]:
    reallocated, ratios = state["reallocations"] > 0, state.get("sketch_ratios")
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
        "sketch_ratios are of more or fewer matrices than norms": ratios is not None
        and len(ratios) != len(state["norms"]),
        "recording, and no reallocation is to come": state["recording"]
        and reallocated
        and state["config"].get("reallocate_every") is None,
        "more reallocations than steps": state["reallocations"] > state["steps"],
        "the last reallocation is later than steps": (state["reallocation"] or {}).get("step", 0) > state["steps"],
        "more recorded_steps than steps": state["recorded_steps"] > state["steps"],
        "more non_finite_steps than recorded_steps": state["non_finite_steps"] > state["recorded_steps"],
    }
