"""Where PEFT keeps the two factors of a LoRA layer.

A LoRA layer adds Δ = s·B·A to a weight matrix W of shape (d_out, d_in). Whatever the layer, the rank can be brought to the
middle, which is how the other modules of glora see the factors:

    A as (E, r, d_in) and B as (d_out, r, E)

E is 1 except for a stack of E experts (PEFT's `target_parameters`), whose A is stored expert by expert, (E·r, d_in), and
whose B rank by rank, (d_out, r·E). For a convolution d_in counts the elements of its kernel. An embedding is LoRA the other
way round: d_in is the vocabulary, A starts at zero and B is drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableMapping
from typing import Any, cast

import torch
from peft import LoraModel, PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def base_model(model: nn.Module) -> nn.Module:
    """The model that module names are relative to, as in PEFT's patterns: without PEFT's and the parallel wrappers."""
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, PeftModel | LoraModel):
            model = cast(nn.Module, model.model if isinstance(model, LoraModel) else model.get_base_model())
        else:
            return model


def adapted_model(model: nn.Module) -> nn.Module:
    """What PEFT has adapted: the model, or the one module within it that has adapters.

    An adapted encoder may stand beside a head of the user's own, for example.

    Raises:
        ValueError: several modules have adapters of their own.
    """
    while hasattr(model, "_orig_mod") or isinstance(model, DataParallel | DistributedDataParallel):
        model = cast(nn.Module, model._orig_mod if hasattr(model, "_orig_mod") else model.module)
    if peft_configs(model):
        return model
    holders: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if peft_configs(module) and not any(name.startswith(f"{holder}.") for holder in holders):
            holders[name] = module
    if len(holders) > 1:
        names = list(holders)
        raise ValueError(
            f"{len(names)} modules of this {type(model).__name__} have adapters of their own ({', '.join(names)}); allocate "
            f"the ranks of each by itself, with a RankAllocator for model.{names[0]} and one for each other"
        )
    return next(iter(holders.values()), model)


def peft_configs(model: nn.Module) -> MutableMapping[str, Any]:
    """PEFT's configuration of each adapter, whether LoRA came by `get_peft_model` or by `model.add_adapter`."""
    return cast(MutableMapping[str, Any], getattr(model, "peft_config", {}))


def has_adapter(layer: LoraLayer, adapter_name: str) -> bool:
    """Whether the layer carries this adapter."""
    return adapter_name in layer.lora_A or adapter_name in layer.lora_embedding_A


def factors(layer: LoraLayer, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B as PEFT stores them."""
    if adapter_name in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter_name], layer.lora_embedding_B[adapter_name]
    return layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight


def set_factors(layer: LoraLayer, adapter_name: str, A: nn.Parameter, B: nn.Parameter) -> None:
    """Put other factors, of another rank, into the layer; the modules that hold them stay the same objects."""
    if adapter_name in layer.lora_embedding_A:
        layer.lora_embedding_A[adapter_name], layer.lora_embedding_B[adapter_name] = A, B
        return
    down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
    down.weight, up.weight = A, B
    if isinstance(down, nn.Linear):
        down.out_features = up.in_features = A.shape[0]
    else:
        down.out_channels = up.in_channels = A.shape[0]


def by_rank_A(t: torch.Tensor, E: int, rank: int) -> torch.Tensor:
    """A, or a state of A, from (E·r, ...) as stored to (E, r, d_in)."""
    return t.reshape(E, rank, math.prod(t.shape[1:]))


def by_rank_B(t: torch.Tensor, E: int, rank: int) -> torch.Tensor:
    """B, or a state of B, from (d_out, r·E, ...) as stored to (d_out, r, E)."""
    return t.reshape(t.numel() // (rank * E) if rank else t.shape[0], rank, E)


def experts(layer: LoraLayer) -> int:
    """E, the number of weight matrices that the layer's adapter updates."""
    return int(layer.num_experts) if isinstance(layer, ParamWrapper) else 1


def random_factor(layer: LoraLayer, adapter_name: str) -> str:
    """Which factor LoRA draws at random, "A" or, for an embedding, "B"; the other starts at zero."""
    return "B" if adapter_name in layer.lora_embedding_A else "A"


def dimensions(layer: LoraLayer, adapter_name: str) -> tuple[int, int]:
    """(d_out, d_in) of the weight matrix, or of each expert's, that the adapter updates."""
    A, B = factors(layer, adapter_name)
    return B.shape[0], math.prod(A.shape[1:])


def cost(layer: LoraLayer, adapter_name: str) -> int:
    """Parameters of one rank: E·(d_in + d_out)."""
    return experts(layer) * sum(dimensions(layer, adapter_name))


def adapter_entries(layer: LoraLayer, adapter_name: str) -> dict[str, Any]:
    """All that a layer holds for one adapter, by the attribute that holds it."""
    entries = {}
    for attribute in (*layer.adapter_layer_names, *layer.other_param_names, "lora_variant"):
        container = getattr(layer, attribute, None)
        if container is not None and adapter_name in container:
            entries[attribute] = container[adapter_name]
    return entries


def remove_adapter(layer: LoraLayer, adapter_name: str) -> None:
    """Take one adapter out of a layer, leaving the layer's other adapters, and which of them are active, alone.

    PEFT's own `delete_adapter` is for a whole model: it makes another adapter of the layer active in this one's place.
    """
    for attribute in adapter_entries(layer, adapter_name):
        del getattr(layer, attribute)[adapter_name]


def put_adapter(layer: LoraLayer, adapter_name: str, entries: Mapping[str, Any]) -> None:
    """Put back what `adapter_entries` gave before the adapter was removed, with factors of rank 0 to grow from."""
    for attribute, entry in entries.items():
        getattr(layer, attribute)[adapter_name] = entry
    A, B = factors(layer, adapter_name)
    set_factors(
        layer,
        adapter_name,
        nn.Parameter(A.detach()[:0], requires_grad=A.requires_grad),
        nn.Parameter(B.detach()[:, :0], requires_grad=B.requires_grad),
    )
    layer.r[adapter_name] = 0


def exact_pattern(name: str) -> str:
    r"""A key for rank_pattern and alpha_pattern that matches this module and no other.

    PEFT looks for `(.*\.)?(key)$`: an unescaped dot is a wildcard, and a bare name matches every module that ends so.
    """
    return "^" + re.escape(name)


def rank_in(state_dict: Mapping[str, torch.Tensor], module_name: str, adapter_name: str) -> int | None:
    """The rows of A that a state dict holds for one module's adapter (E·r for experts); None where it holds none."""
    for key in (f"{module_name}.lora_A.{adapter_name}.weight", f"{module_name}.lora_embedding_A.{adapter_name}"):
        if key in state_dict:
            return state_dict[key].shape[0]
    return None
