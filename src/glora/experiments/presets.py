"""Comparisons with a name: settings that belong together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A comparison's methods, seeds and settings; what is given on the command line beside it wins."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    """What to keep in mind when reading its results."""


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        methods=("lora", "adalora", "glora"),
        seeds=(0,),
        # Measured on stdlib-docs: LoRA is at chance after the first 48 steps and at 0.70 to 0.74 from step 100 on. At
        # 3e-3 it collapses. 40 tokens hold 85 % of the pairs whole.
        settings={
            "train_limit": 768,
            "eval_limit": 400,
            "batch_size": 16,
            "epochs": 3,
            "max_length": 40,
            "learning_rate": 1e-3,
        },
        note=(
            "This demo shows that everything works; it proves nothing about a method. It has one seed and few steps, at "
            "5 times the study's learning rate. AdaLoRA starts with factors close to zero and is meant for thousands of "
            "steps, so here it has hardly begun. `glora compare --output DIR` runs 3 seeds with the study's settings."
        ),
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
