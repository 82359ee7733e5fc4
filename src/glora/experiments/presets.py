"""Comparisons with a name: settings that belong together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A comparison's methods, seeds and settings; what is given on the command line beside it wins."""

    summary: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        summary="LoRA, AdaLoRA and GLoRA on the embedded encoder, in less than 5 minutes on 2 cores",
        methods=("lora", "adalora", "glora"),
        seeds=(0,),
        settings={},
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        ValueError: if there is none, naming the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.lower(), PRESETS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown preset {name!r}: {hint}The presets are {', '.join(PRESETS)}")
