"""Presets: named comparisons, with settings that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glora.messages import did_you_mean


@dataclass(frozen=True)
class Preset:
    """A comparison's methods, seeds and settings; options of the command line win over them."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    """A caveat, printed after the results."""


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        methods=("lora", "glora", "glora:rule=spectrum:budget=parameters"),
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
            "5 times the study's learning rate. `glora compare --output DIR` runs LoRA, AdaLoRA and GLoRA on 3 seeds with the "
            "study's settings."
        ),
    ),
}


def find_preset(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise ValueError(f"unknown preset {name!r}{did_you_mean(name, PRESETS) or '.'} Presets: {', '.join(PRESETS)}")
