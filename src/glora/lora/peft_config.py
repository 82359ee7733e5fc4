"""Ranks that differ, in the terms of PEFT's own configuration.

It can say which rank and α each module has: `r` and `lora_alpha` for most, `rank_pattern` and `alpha_pattern` for the others,
`exclude_modules` for those without an adapter. Stock PEFT then loads what is saved. With one scaling s everywhere
α_k/r_k = lora_alpha/r, so a server that reads only `r` and `lora_alpha` gets it right as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft import LoraConfig
from peft.utils.other import get_pattern_key

SAME_CONFIG = "make the model with the LoraConfig that the checkpoint's run began with, or start a new run"


def describe_ranks(
    config: LoraConfig,
    ranks: Mapping[str, int],
    alphas: Mapping[str, Any],
    exclude_modules: str | list[str] | set[str] | None,
) -> None:
    """Bring an adapter's configuration up to date with its matrices, so that PEFT can load what is saved.

    Args:
        config: The adapter's configuration; changed in place.
        ranks: The rank of each matrix, those at 0 included.
        alphas: The α of each matrix that has an adapter.
        exclude_modules: What the user had excluded before any module was removed.
    """
    widest = max(ranks, key=lambda name: ranks[name])
    config.r, config.lora_alpha = ranks[widest], alphas[widest]
    config.rank_pattern = {exact_pattern(name): rank for name, rank in ranks.items() if rank and rank != config.r}
    config.alpha_pattern = {exact_pattern(name): a for name, a in alphas.items() if a != config.lora_alpha}
    config.exclude_modules = excluding((re.escape(name) for name, rank in ranks.items() if not rank), exclude_modules)
    if config.init_lora_weights == "orthogonal":
        # PEFT does not load an odd rank, and loading overwrites the initialization
        config.init_lora_weights = True


def check_scalings(scalings: Mapping[str, float], saved: Mapping[str, float]) -> None:
    """Compare the scaling of each matrix with the one that saved weights were trained with."""
    for name, scaling in scalings.items():
        if not math.isclose(scaling, saved.get(name, scaling), rel_tol=1e-6):
            raise ValueError(f"{name} has scaling {scaling:g}, and the checkpoint {saved[name]:g}; {SAME_CONFIG}")


def configured_scaling(config: LoraConfig, name: str) -> float:
    """Return the scaling that PEFT gives to a module of this name: α/r, or α/√r with rsLoRA."""
    rank_pattern, alpha_pattern = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = rank_pattern.get(get_pattern_key(rank_pattern, name), config.r)
    alpha = alpha_pattern.get(get_pattern_key(alpha_pattern, name), config.lora_alpha)
    return float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def excluding(patterns: Iterable[str], before: str | list[str] | set[str] | None) -> str | list[str] | set[str] | None:
    """Join what the user excluded and further patterns into one expression, which PEFT matches against whole names."""
    names = list(patterns)
    if not names:
        return before
    if before and not isinstance(before, str):
        # What PEFT does with a list: the module itself, or any that ends in it after a dot.
        names = [rf"(?:.*\.)?(?:{'|'.join(re.escape(name) for name in sorted(before))})", *names]
    elif before:
        names = [f"(?:{before})", *names]
    return "|".join(names)


def exact_pattern(name: str) -> str:
    r"""Return a key for rank_pattern and alpha_pattern that matches this module and no other.

    PEFT looks for `(.*\.)?(key)$`: an unescaped dot is a wildcard, and a bare name matches every module that ends so.
    """
    return "^" + re.escape(name)
