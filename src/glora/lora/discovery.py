"""Find the adapter of a model, the matrices that it updates, and those whose ranks glora can change.

A model that cannot work is rejected here, before the first step, with the module's name and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, cast

from peft import LoraModel, PeftMixedModel, PeftModel, PeftType
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from glora.lora.matrix import LoraMatrix
from glora.messages import did_you_mean

# These begin by moving a part of the base weight, as large as the adapter's rank, into the adapter. What is saved then holds
# only for the base weight without that part, and PEFT finds its way back only at the rank the adapter began with: by
# initializing again when it loads (PiSSA, OLoRA), or by a conversion to plain LoRA that needs the adapter as it began.
INITIALIZATIONS_FROM_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def find_matrices(
    model: nn.Module, adapter_name: str | None = None, *, resizable: bool = True, trainable: bool = True
) -> tuple[str, dict[str, LoraMatrix]]:
    """Return an adapter's name and its matrices by name, in the model's order.

    Names are those of PEFT's patterns: the module's, relative to the base model; for the parameters of experts the module's
    and the parameter's.

    Args:
        model: A PeftModel, a transformers model with an adapter of its own, or a module that holds one such model; may be
            wrapped for parallel training.
        adapter_name: The adapter. Default: the active one.
        resizable: Check that the adapter's ranks can be changed.
        trainable: Check that the adapter is trained.

    Raises:
        ValueError: there is no LoRA in the model, or several modules have adapters of their own; the adapter is of another
            method, does not exist, is merged or frozen, or two are active and none is named; its initialization or a layer is
            not supported, or a layer is inside a module that modules_to_save copies.
    """
    adapted = adapted_model(model)
    if isinstance(adapted, PeftMixedModel):
        raise ValueError(
            "PEFT cannot save a PeftMixedModel; make the model with get_peft_model(model, config), without mixed=True"
        )
    configs, root = peft_configs(adapted), base_model(adapted)
    layers = {
        matrix_name(name, module): module
        for name, module in root.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module, AdaLoraLayer)
    }
    if adapter_name is None:
        adapter_name = _active_adapter(layers, configs)
    config = configs.get(adapter_name)
    _check_adapter(root, layers, adapter_name, getattr(config, "peft_type", PeftType.LORA))
    bias = getattr(config, "bias", "none")
    matrices = {name: LoraMatrix(name, layer, adapter_name, bias=bias) for name, layer in layers.items()}
    matrices = {name: matrix for name, matrix in matrices.items() if matrix.present}
    copied = [name for name, module in root.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    within = [name for name in matrices if any(name.startswith(f"{wrapper}.") for wrapper in copied)]
    if resizable:
        if within:
            raise ValueError(
                f"{within[0]}: PEFT does not save LoRA inside a module that another adapter copies by modules_to_save; leave "
                f"the module out of target_modules, or name it in modules_to_save of adapter {adapter_name!r} as well"
            )
        _check_config(config)
        for matrix in matrices.values():
            matrix.check_supported()
    if trainable and not any(factor.requires_grad for matrix in matrices.values() for factor in matrix.factors):
        raise ValueError(
            f"adapter {adapter_name!r} is frozen: none of its weights requires a gradient. Load it with "
            f"is_trainable=True, or activate it with model.set_adapter({adapter_name!r})"
        )
    return adapter_name, {name: matrix for name, matrix in matrices.items() if name not in within}


def _check_adapter(root: nn.Module, layers: Mapping[str, LoraLayer], adapter_name: str, kind: PeftType) -> None:
    """Check that the adapter is of LoRA, and in the model."""
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
            f"there is no LoRA adapter {adapter_name!r} in this model; it has {', '.join(map(repr, known))}"
            f"{did_you_mean(adapter_name, known)}"
        )


def matrix_name(module_name: str, layer: LoraLayer) -> str:
    """Return the name of the matrix that a layer updates: the module's, or for experts that of their parameter."""
    if isinstance(layer, ParamWrapper):  # several parameters of one module are wrappers inside one another
        return f"{module_name.replace('.base_layer', '')}.{layer.parameter_name}"
    return module_name


def base_model(model: nn.Module) -> nn.Module:
    """Return the model that module names are relative to: without PEFT's and the parallel wrappers."""
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
    """Return the model that PEFT has adapted: this one, or the only module within it that has adapters.

    The module may be an encoder beside your own head, for example.
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
    """Return PEFT's configuration of each adapter, after `get_peft_model` as well as `model.add_adapter`."""
    return cast(MutableMapping[str, Any], getattr(model, "peft_config", {}))


def initialization_from_base(config: Any) -> str:
    """Return the initialization that changed the base weights, by PEFT's name; empty if none did."""
    how = getattr(config, "init_lora_weights", True)
    return how if isinstance(how, str) and how.lower().startswith(INITIALIZATIONS_FROM_THE_BASE) else ""


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


def _check_config(config: Any) -> None:
    if how := initialization_from_base(config):
        raise ValueError(
            f"init_lora_weights={how!r} moves part of the base weights into the adapter, at its first rank: after a "
            "reallocation PEFT could not load what is saved. Get ranks first with glora.suggest_ranks, and initialize with "
            "LoraConfig(rank_pattern=...); or keep the default initialization"
        )
    if getattr(config, "target_modules_to_tie", None):
        raise ValueError(
            "ensure_weight_tying=True ties the adapter to the embedding's, so it cannot have its own rank; set "
            "ensure_weight_tying=False, or leave the embedding out of target_modules"
        )
