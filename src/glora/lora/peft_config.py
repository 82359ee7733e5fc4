"""Ranks that differ, in the terms of a plain PEFT adapter.

PEFT's own configuration can say which rank and α each module has: `r` and `lora_alpha` for most, `rank_pattern` and
`alpha_pattern` for the others, `exclude_modules` for those without an adapter. Stock PEFT then loads what is saved.
With one scaling s everywhere α_k/r_k = lora_alpha/r, so a server that reads only `r` and `lora_alpha` gets it right as
well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer

from glora.lora.matrix import exact_pattern


def describe_ranks(
    config: LoraConfig,
    layers: Mapping[str, LoraLayer],
    removed: Iterable[str],
    adapter_name: str,
    exclude_modules: str | list[str] | set[str] | None,
) -> None:
    """Make a live adapter's configuration say what its layers are now, so that whatever saves it saves the truth.

    Args:
        config: The adapter's configuration, as PEFT has it in the model; changed in place.
        layers: The layers that carry the adapter, by module name.
        removed: Names of the modules at rank 0, which do not.
        adapter_name: The adapter.
        exclude_modules: What the user had excluded before any module was removed.
    """
    ranks = {name: layer.r[adapter_name] for name, layer in layers.items()}
    alphas = {name: layer.lora_alpha[adapter_name] for name, layer in layers.items()}
    largest = max(ranks, key=lambda name: ranks[name])
    config.r, config.lora_alpha = ranks[largest], alphas[largest]
    config.rank_pattern = {exact_pattern(k): r for k, r in ranks.items() if r != config.r}
    config.alpha_pattern = {exact_pattern(k): a for k, a in alphas.items() if a != config.lora_alpha}
    config.exclude_modules = excluding((re.escape(name) for name in removed), exclude_modules)
    if config.init_lora_weights == "orthogonal":
        # PEFT would refuse to load an odd rank, and what it initialises is overwritten by what it loads
        config.init_lora_weights = True


def excluding(patterns: Iterable[str], before: str | list[str] | set[str] | None) -> str | list[str] | set[str] | None:
    """What the user excluded and further patterns, as the one expression that PEFT matches against whole names."""
    names = list(patterns)
    if not names:
        return before
    if before and not isinstance(before, str):
        # What PEFT does with a list: the module itself, or any that ends in it after a dot.
        names = [rf"(?:.*\.)?(?:{'|'.join(re.escape(name) for name in sorted(before))})", *names]
    elif before:
        names = [f"(?:{before})", *names]
    return "|".join(names)
