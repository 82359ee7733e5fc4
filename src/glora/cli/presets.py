"""Presets: named comparisons, with settings that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glora.experiments.models.registry import PACKAGED_LLM
from glora.messages import did_you_mean


@dataclass(frozen=True)
class Preset:
    """A comparison's methods, seeds and settings; options of the command line win over them."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    intro: str = ""
    """Which question it answers, printed before it begins."""


METHODS = ("lora", "lora:average_rank=4", "glora:rule=spectrum")
"""Small, four times as large, and cut from the large to the small: the question of both demos."""

PRESETS: dict[str, Preset] = {
    "demo": Preset(
        methods=METHODS,
        seeds=(0, 1, 2),
        # 32 tokens hold most pairs whole. At 3e-3 and rank 8 LoRA collapses in one of three seeds.
        settings={
            "rank": 1,
            "train_limit": 960,
            "eval_limit": 400,
            "batch_size": 8,
            "epochs": 1,
            "max_length": 32,
            "learning_rate": 2e-3,
            "save_adapters": True,
        },
        intro=(
            "What does the size of an adapter buy, and can it be had smaller? A small encoder learns whether a docstring "
            "describes a function: with LoRA of rank 1, with LoRA of rank 4, four times as large, and with GLoRA's spectrum "
            "rule, which starts at rank 4 and cuts to the size of rank 1. Nine short runs; the report says what they show. "
            "All have one learning rate and little time, in which larger adapters learn faster; after long training the "
            "differences are smaller."
        ),
    ),
    "demo-llm": Preset(
        methods=METHODS,
        seeds=(0, 1, 2),
        # 512 tokens hold all problems whole. Without written answers the loss judges.
        settings={
            "model": PACKAGED_LLM.model,
            "task": "gsm8k",
            "rank": 1,
            "train_limit": 48,
            "eval_limit": 32,
            "batch_size": 4,
            "group_by_length": True,
            "epochs": 1,
            "max_length": 512,
            "max_new_tokens": 0,
            "learning_rate": 4e-3,
            "save_adapters": True,
        },
        intro=(
            "What does the size of an adapter buy, and can it be had smaller? A small language model learns from worked "
            "solutions of school problems (GSM8K): with LoRA of rank 1, with LoRA of rank 4, four times as large, and with "
            "GLoRA's spectrum rule, which starts at rank 4 and cuts to the size of rank 1. Nine short runs, judged by the loss "
            "of the solutions to problems that were not trained on; the report says what they show. All have one learning rate "
            "and twelve steps, in which larger adapters learn faster; after long training the differences are smaller."
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
