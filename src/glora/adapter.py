"""Ranks that differ, in the terms of a plain PEFT adapter.

PEFT's own configuration can say which rank and α each module has: `r` and `lora_alpha` for most, `rank_pattern` and
`alpha_pattern` for the others, `exclude_modules` for those without an adapter. Stock PEFT then loads what is saved.
With one scaling s everywhere α_k/r_k = lora_alpha/r, so a server that reads only `r` and `lora_alpha` gets it right as
well.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from glora.adapter_discovery import find_lora_layers
from glora.lora_layers import base_model, by_rank_A, by_rank_B, exact_pattern, experts, peft_configs


def describe_ranks(
    config: LoraConfig,
    layers: Mapping[str, LoraLayer],
    removed: Iterable[str],
    adapter_name: str,
    exclude_modules: str | list[str] | set[str] | None,
) -> None:
    """Make a live adapter's configuration say what its layers are now, so that whatever saves it saves the truth.

    Args:
        config: The adapter's configuration; changed in place, because PEFT shares it with the model.
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
    config.exclude_modules = _excluding(removed, exclude_modules)
    if config.init_lora_weights == "orthogonal":
        # PEFT would refuse to load an odd rank, and what it initialises is overwritten by what it loads
        config.init_lora_weights = True


def _excluding(removed: Iterable[str], before: str | list[str] | set[str] | None) -> str | list[str] | set[str] | None:
    """The user's exclusions and the removed modules, as the pattern that PEFT matches against whole names."""
    names = [re.escape(name) for name in removed]
    if not names:
        return before
    if before and not isinstance(before, str):
        # What PEFT does with a list: the module itself, or any that ends in it after a dot.
        names = [rf"(?:.*\.)?(?:{'|'.join(re.escape(name) for name in sorted(before))})", *names]
    elif before:
        names = [f"(?:{before})", *names]
    return "|".join(names)


def export_uniform(model: nn.Module, directory: str | Path, adapter_name: str = "default") -> Path:
    """Save the adapter with every layer padded to the largest rank, for servers that read one rank for all layers.

    A gets zero rows and B zero columns, so B·A and every logit stay as they are. Where the layers' scalings differ, the
    difference goes into B. Modules without an adapter (rank 0) stay without: they are not in the file, and
    `exclude_modules` names them.

    Args:
        model: A PeftModel, or a transformers model with an adapter.
        directory: Where adapter_config.json and adapter_model.safetensors are written; made if it does not exist.
        adapter_name: The adapter to export.

    Returns:
        The directory.

    Raises:
        ValueError: the model has no such LoRA adapter.
    """
    _, layers = find_lora_layers(model, adapter_name, trainable=False)
    config = copy.deepcopy(peft_configs(model)[adapter_name])
    widest = max(layers.values(), key=lambda layer: layer.r[adapter_name])
    rank, scaling = widest.r[adapter_name], widest.scaling[adapter_name]
    config.r, config.lora_alpha = rank, widest.lora_alpha[adapter_name]
    config.rank_pattern, config.alpha_pattern = {}, {}
    config.inference_mode = True

    root = base_model(model)
    paths = {module: path for path, module in root.named_modules()}
    peft = isinstance(model, PeftModel)
    state = get_peft_model_state_dict(model if peft else root, adapter_name=adapter_name)
    tensors = {("" if peft else "base_model.model.") + key: value for key, value in state.items()}
    for layer in layers.values():
        prefix = f"base_model.model.{paths[layer]}."
        if adapter_name in layer.lora_embedding_A:
            key_A, key_B = f"{prefix}lora_embedding_A", f"{prefix}lora_embedding_B"
        else:
            key_A, key_B = f"{prefix}lora_A.weight", f"{prefix}lora_B.weight"
        factor = layer.scaling[adapter_name] / scaling
        old, E = layer.r[adapter_name], experts(layer)
        A, B = tensors[key_A], tensors[key_B]
        padded_A = F.pad(by_rank_A(A, E, old), (0, 0, 0, rank - old))
        padded_B = F.pad(by_rank_B(B, E, old), (0, 0, 0, rank - old)) * factor
        tensors[key_A] = padded_A.reshape(E * rank, *A.shape[1:])
        tensors[key_B] = padded_B.reshape(B.shape[0], rank * E, *B.shape[2:])
        if (key_bias := f"{prefix}lora_B.bias") in tensors:
            tensors[key_bias] = tensors[key_bias] * factor

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    save_file(plain, directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(directory)
    return directory
