"""Where PEFT keeps a LoRA layer's two factors, and which layers glora can work on.

A LoRA layer adds Δ = s·B·A to a weight matrix W of shape (d_out, d_in). Whatever the layer's type, the rank is
dimension 0 of A and dimension 1 of B. The other modules of glora speak of A and B and leave PEFT's containers to this
one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftModel, PeftType
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)


def base_model(model: nn.Module) -> nn.Module:
    """The model that module names are relative to, as in PEFT's patterns: without PEFT's and the parallel wrappers."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, PeftModel):
            model = cast(nn.Module, model.get_base_model())
        else:
            return model


def peft_configs(model: nn.Module) -> Mapping[str, Any]:
    """PEFT's configuration of each adapter, whether LoRA came by `get_peft_model` or by `model.add_adapter`."""
    while not hasattr(model, "peft_config"):
        inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return {}
        model = inner
    return cast(Mapping[str, Any], model.peft_config)


def find_lora_layers(
    model: nn.Module, adapter_name: str | None = None, *, trainable: bool = True
) -> tuple[str, dict[str, LoraLayer]]:
    """An adapter and its layers by module name, in the model's order.

    Args:
        model: A PeftModel, or a transformers model with an adapter of its own; may be wrapped for parallel training.
        adapter_name: Which adapter; None takes the active one.
        trainable: Whether the adapter must be one that is being trained.

    Raises:
        ValueError: there is no LoRA in the model; the adapter is of another method, does not exist, is merged or
            frozen; or a layer is of a kind that is not supported.
    """
    configs = peft_configs(model)
    others = {name: config.peft_type for name, config in configs.items() if config.peft_type != PeftType.LORA}
    root = base_model(model)
    layers = {
        name: module
        for name, module in root.named_modules()
        if isinstance(module, LoraLayer) and type(module).__module__.startswith("peft.tuners.lora.")
    }
    if adapter_name is None:
        adapter_name = _active_adapter(layers, configs)
    if adapter_name in others:
        raise ValueError(
            f"adapter {adapter_name!r} is of type {others[adapter_name].value}; glora allocates the "
            "ranks of LoRA adapters only. Make the model with peft.LoraConfig"
        )
    if not layers:
        raise ValueError(
            f"there is no LoRA layer in this {type(root).__name__}; "
            "add one with peft.get_peft_model(model, LoraConfig(...)) or model.add_adapter(LoraConfig(...))"
        )
    known = sorted({name for layer in layers.values() for name in (*layer.lora_A, *layer.lora_embedding_A)})
    if adapter_name not in known:
        raise ValueError(
            f"there is no LoRA adapter {adapter_name!r} in this model; it has {_listing(adapter_name, known)}"
        )
    layers = {name: layer for name, layer in layers.items() if has_adapter(layer, adapter_name)}
    for name, layer in layers.items():
        check_supported(name, layer, adapter_name)
    if trainable and not any(
        factor.requires_grad for layer in layers.values() for factor in factors(layer, adapter_name)
    ):
        raise ValueError(
            f"adapter {adapter_name!r} is frozen: none of its weights requires a gradient. Load it with "
            f"is_trainable=True, or activate it with model.set_adapter({adapter_name!r})"
        )
    return adapter_name, layers


def _active_adapter(layers: dict[str, LoraLayer], configs: Mapping[str, Any]) -> str:
    active = sorted({name for layer in layers.values() for name in layer.active_adapters})
    if not layers:
        return next(iter(configs), "default")
    if len(active) > 1:
        raise ValueError(
            f"{len(active)} adapters are active at once ({', '.join(active)}); name the one to allocate with "
            "RankAllocationConfig(adapter_name=...)"
        )
    return str(active[0])


def _listing(wanted: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=1)
    return f"{', '.join(map(repr, known))}" + (f"; did you mean {near[0]!r}?" if near else "")


def has_adapter(layer: LoraLayer, adapter_name: str) -> bool:
    """Whether the layer carries this adapter."""
    return adapter_name in layer.lora_A or adapter_name in layer.lora_embedding_A


def check_supported(name: str, layer: LoraLayer, adapter_name: str) -> None:
    """Refuse, by name and with the remedy, what glora cannot resize yet.

    Raises:
        ValueError: the layer is not LoRA on an nn.Linear, uses a variant (DoRA, ...) or lora_bias, is merged, is tied
            to another layer, or is of a dtype other than float32 and bfloat16.
    """
    reason = remedy = ""
    base = layer.get_base_layer()
    if type(layer) is not LoraLinear or not isinstance(base, nn.Linear):
        reason = f"LoRA on {type(base).__name__} ({type(layer).__name__})"
        remedy = "leave it out of target_modules"
    elif adapter_name in layer.lora_variant:
        reason = f"the variant {type(layer.lora_variant[adapter_name]).__name__}"
        remedy = "use plain LoRA (use_dora=False and no other variant)"
    elif layer.lora_bias.get(adapter_name):
        reason, remedy = "lora_bias=True", "set lora_bias=False"
    elif adapter_name in layer.merged_adapters:
        reason, remedy = "a merged adapter", "call model.unmerge_adapter() first"
    else:
        dtypes = {factor.dtype for factor in factors(layer, adapter_name)}
        if not dtypes <= set(SUPPORTED_DTYPES):
            wrong = next(iter(dtypes - set(SUPPORTED_DTYPES)))
            reason = f"adapter weights in {str(wrong).removeprefix('torch.')}"
            remedy = (
                "load the model in float32 or bfloat16 (PEFT keeps the adapter in float32 with autocast_adapter_dtype)"
            )
    if reason:
        raise ValueError(f"{name}: {reason} is not supported by glora; {remedy}")


def factors(layer: LoraLayer, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """A of shape (r, d_in) and B of shape (d_out, r)."""
    return layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight


def set_factors(layer: LoraLayer, adapter_name: str, A: nn.Parameter, B: nn.Parameter) -> None:
    """Put other factors, of another rank, into the layer; the modules that hold them stay the same objects."""
    down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    down.weight, up.weight = A, B
    down.out_features = up.in_features = A.shape[0]


def remove_adapter(layer: LoraLayer, adapter_name: str) -> None:
    """Take one adapter out of a layer, leaving the layer's other adapters, and which of them are active, alone.

    PEFT's own `delete_adapter` is for a whole model: it makes another adapter of the layer active in the place of this
    one.
    """
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names, "lora_variant"):
        container = getattr(layer, attribute, None)
        if container is not None and adapter_name in container:
            del container[adapter_name]


def dimensions(layer: LoraLayer, adapter_name: str) -> tuple[int, int]:
    """(d_out, d_in) of the weight matrix that the adapter updates."""
    A, B = factors(layer, adapter_name)
    return B.shape[0], A[0].numel()


def exact_pattern(name: str) -> str:
    r"""A key for rank_pattern and alpha_pattern that matches this module and no other.

    PEFT looks for `(.*\.)?(key)$`: an unescaped dot is a wildcard, and a bare name matches every module that ends so.
    """
    return "^" + re.escape(name)
