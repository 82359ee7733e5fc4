"""The schema of an allocator's saved state: the errors of a damaged or older one are reported before anything changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from glora.reallocation import Reallocation

STATE_VERSION = 1
MAX_COUNT = 10**12
"""Steps, or parameters: beyond any training; a thousand steps a second take thirty years."""
MAX_RANK, MAX_SCALING = 2**20, 1e30
MAX_NORM = 3.4e38
"""Larger ones are inf in float32, in which the average is kept."""


def check_saved_state(state: object) -> None:
    """Check what `RankAllocator.load_state_dict` is given."""
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


def _is_count(value: object, most: int = MAX_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_rank(value: object) -> bool:
    return _is_count(value, MAX_RANK)


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_norm(value: object) -> bool:
    return _is_number(value, 0, MAX_NORM)


def _is_scaling(value: object) -> bool:
    return _is_number(value, -MAX_SCALING, MAX_SCALING)


def _is_config(value: object) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    steps = value.get("warmup_steps")
    return _is_count(steps) and steps != 0


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
        and (kept is None or _is_number(kept, 0, 1))
    )


_COUNT = (f"an int from 0 to {MAX_COUNT:,}", _is_count)
_RANKS = (f"a rank from 0 to {MAX_RANK:,} for each matrix", _by_name(_is_rank))
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "config": ("a configuration with its warmup_steps", _is_config),
    "steps": _COUNT,
    "norms": ("a number of at least 0 that float32 has, for each matrix", _by_name(_is_norm)),
    "recorded_steps": _COUNT,
    "non_finite_steps": _COUNT,
    "non_finite_norms": ("a count for each matrix", _by_name(_is_count)),
    "recording": ("true or false", lambda value: isinstance(value, bool)),
    "allocated": ("true or false", lambda value: isinstance(value, bool)),
    "reallocations": _COUNT,
    "initial_ranks": _RANKS,
    "ranks": _RANKS,
    "scalings": (f"a number up to {MAX_SCALING:g} for each matrix", _by_name(_is_scaling)),
    "reallocation": ("the last reallocation, or null", _is_reallocation),
}

_OPTIONAL: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "sketch_ratios": (
        "a list of numbers of at least 0, null where none was measured",
        lambda value: isinstance(value, list) and all(x is None or _is_norm(x) for x in value),
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
