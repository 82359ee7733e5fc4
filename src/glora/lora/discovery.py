"""Which adapter of a model is meant, which matrices it updates, and whether glora can change their ranks.

Whatever cannot work is refused here, before the first step, with the module's name and what to do instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftMixedModel, PeftType
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import variants
from peft.tuners.lora.layer import Embedding, LoraLayer, ParamWrapper
from peft.utils import ModulesToSaveWrapper
from torch import nn

from glora.lora.layout import class_of
from glora.lora.matrix import adapted_model, base_model, factors, has_adapter, peft_configs

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SUPPORTED_VARIANTS = (
    variants.DoraLinearVariant,  # the embedding's DoRA derives from it
    variants.DoraConv1dVariant,
    variants.DoraConv2dVariant,
    variants.DoraConv3dVariant,
)

# These begin by moving a part of the base weight, as large as the adapter's rank, into the adapter. What is saved then holds
# only for the base weight without that part, and PEFT finds its way back only at the rank the adapter began with: by
# initialising again when it loads (PiSSA, OLoRA), or by a conversion to plain LoRA that needs the adapter as it began.
INITIALISATIONS_FROM_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def find_lora_layers(
    model: nn.Module, adapter_name: str | None = None, *, trainable: bool = True
) -> tuple[str, dict[str, LoraLayer]]:
    """An adapter and its layers, by the name of the matrix that each updates, in the model's order.

    Names are those of PEFT's patterns: the module's, relative to the base model; for the parameters of experts the module's
    and the parameter's.

    Args:
        model: A PeftModel, a transformers model with an adapter of its own, or a module that holds one such model; may be
            wrapped for parallel training.
        adapter_name: Which adapter; None takes the active one.
        trainable: Whether the adapter must be one that is being trained, and whose ranks can be changed.

    Raises:
        ValueError: there is no LoRA in the model, or several modules have adapters of their own; the adapter is of another
            method, does not exist, is merged or frozen, or two are active and none is named; its initialisation or a layer is
            of a kind that is not supported, or lies inside a module that modules_to_save copies.
    """
    adapted = adapted_model(model)
    if isinstance(adapted, PeftMixedModel):
        raise ValueError(
            "PEFT cannot save a PeftMixedModel; make the model with get_peft_model(model, config), without mixed=True"
        )
    configs = peft_configs(adapted)
    root = base_model(adapted)
    layers = {
        matrix_name(name, module): module
        for name, module in root.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, AdaLoraLayer)
    }
    if adapter_name is None:
        adapter_name = _active_adapter(layers, configs)
    kind = getattr(configs.get(adapter_name), "peft_type", PeftType.LORA)
    if kind != PeftType.LORA:
        raise ValueError(
            f"adapter {adapter_name!r} is of type {kind.value}; glora allocates the ranks of LoRA adapters only. Make the "
            "model with peft.LoraConfig"
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
    copied = [name for name, module in root.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    within = [name for name in layers if any(name.startswith(f"{wrapper}.") for wrapper in copied)]
    if trainable:
        if within:
            raise ValueError(
                f"{within[0]}: LoRA inside a module that another adapter copies by modules_to_save is not saved by PEFT; leave "
                f"the module out of target_modules, or train it with modules_to_save in adapter {adapter_name!r} as well"
            )
        _check_initialisation(configs.get(adapter_name))
        for name, layer in layers.items():
            check_layer(name, layer, adapter_name)
        if not any(factor.requires_grad for layer in layers.values() for factor in factors(layer, adapter_name)):
            raise ValueError(
                f"adapter {adapter_name!r} is frozen: none of its weights requires a gradient. Load it with "
                f"is_trainable=True, or activate it with model.set_adapter({adapter_name!r})"
            )
    return adapter_name, {name: layer for name, layer in layers.items() if name not in within}


def check_layer(name: str, layer: LoraLayer, adapter_name: str) -> None:
    """Refuse, by name and with the remedy, a layer that glora cannot resize.

    Raises:
        ValueError: the factors are not stored as an ordinary LoRA layer stores them (multi-head attention, for example), the
            layer is a class of the user's own, uses a variant other than DoRA, is a grouped convolution, is merged, or has
            weights in float64 or float8.
    """
    base = layer.get_base_layer()
    remedy = "leave it out of target_modules"
    variant = layer.lora_variant.get(adapter_name)
    ordinary = isinstance(layer, Embedding) or isinstance(
        layer.lora_A[adapter_name], nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    )
    if not class_of(layer).__module__.startswith("peft."):
        reason = f"{type(layer).__name__}, a LoRA layer that is not PEFT's own,"
    elif variant is not None and not isinstance(variant, SUPPORTED_VARIANTS):
        reason = f"the LoRA variant {type(variant).__name__.removesuffix('Variant')}, which is more than a trained B·A,"
        remedy = "use plain LoRA or DoRA"
    elif not ordinary or isinstance(base, nn.MultiheadAttention):
        reason = f"LoRA on {type(base).__name__} ({type(layer).__name__})"
    elif getattr(base, "groups", 1) != 1:
        reason = f"a convolution with groups={base.groups}"
    elif adapter_name in layer.merged_adapters:
        reason, remedy = "a merged adapter", "call model.unmerge_adapter() first"
    elif wrong := {factor.dtype for factor in factors(layer, adapter_name)} - set(SUPPORTED_DTYPES):
        reason = f"adapter weights in {str(wrong.pop()).removeprefix('torch.')}"
        remedy = "load the model in float32 or bfloat16 (PEFT keeps the adapter in float32 with autocast_adapter_dtype)"
    else:
        return
    raise ValueError(f"{name}: {reason} is not supported by glora; {remedy}")


def min_supported_rank(layer: LoraLayer, adapter_name: str, config: Any = None) -> tuple[int, str]:
    """The smallest rank that this layer can have, and why if it is not 0.

    With DoRA, lora_bias or bias="lora_only" the adapter is more than B·A, which taking it out would drop as well; and PEFT's
    configuration cannot leave out one parameter of a stack of experts.
    """
    if adapter_name in layer.lora_variant:
        return 1, "DoRA's magnitude"
    if layer.lora_bias.get(adapter_name):
        return 1, "lora_bias"
    if isinstance(layer, ParamWrapper):
        return 1, "target_parameters"
    if getattr(config, "bias", "none") == "lora_only" and getattr(layer.get_base_layer(), "bias", None) is not None:
        return 1, 'bias="lora_only"'  # PEFT saves the biases of LoRA layers
    return 0, ""


def matrix_name(module_name: str, layer: LoraLayer) -> str:
    """The name of what a layer updates, as in PEFT's patterns: the module's, or for experts that of their parameter."""
    if isinstance(layer, ParamWrapper):  # several parameters of one module are wrappers inside one another
        return f"{module_name.replace('.base_layer', '')}.{layer.parameter_name}"
    return module_name


def _active_adapter(layers: Mapping[str, LoraLayer], configs: Mapping[str, Any]) -> str:
    active = sorted({name for layer in layers.values() for name in layer.active_adapters})
    if not layers or not active:
        return next(iter(configs), "default")
    if len(active) > 1:
        raise ValueError(
            f"{len(active)} adapters are active at once ({', '.join(active)}); name the one to allocate with "
            "RankAllocationConfig(adapter_name=...)"
        )
    return str(active[0])


def _listing(wanted: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=1)
    return ", ".join(map(repr, known)) + (f"; did you mean {near[0]!r}?" if near else "")


def _check_initialisation(config: Any) -> None:
    how = getattr(config, "init_lora_weights", True)
    if isinstance(how, str) and how.lower().startswith(INITIALISATIONS_FROM_THE_BASE):
        raise ValueError(
            f"init_lora_weights={how!r} moves a part of the base weights into the adapter, as large as its rank, and what is "
            "saved after a reallocation would be of another rank than that part: no PEFT could load it. Get the ranks first, "
            "with glora.suggest_ranks, and initialise with LoraConfig(rank_pattern=...); or keep the default initialisation"
        )
    if getattr(config, "target_modules_to_tie", None):
        raise ValueError(
            "an adapter tied to the embedding's (ensure_weight_tying=True) shares its weights with another layer and cannot "
            "have a rank of its own; set ensure_weight_tying=False, or leave the embedding out of target_modules"
        )
