"""`accelerate_lora`: PEFT's LoRA layers with a faster forward and backward pass, and the same numbers to rounding.

It changes one attribute: each layer gets a `forward` that calls fused_lora. Classes, parameters, module tree and configuration
stay as PEFT made them, so saving, loading, merging, resizing and copying the adapter work as before. The new forward checks the
layer at each call, and calls PEFT's wherever it does not apply.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import nn

from glora.acceleration.fused_lora import fused_lora
from glora.lora.discovery import base_model
from glora.lora.factor_watch import FactorWatch, watch_of
from glora.messages import get_logger, shortened

logger = get_logger()
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(repr=False)
class Acceleration:
    """Layers that `accelerate_lora` has changed, and `undo()`.

    As a context manager, `with accelerate_lora(model): ...`, it is undone at the end.

    Attributes:
        layers: The accelerated layers by name, relative to the base model.
        left: Reasons why the other LoRA layers keep PEFT's forward, by name.
    """

    layers: dict[str, Linear]
    left: dict[str, str]

    def undo(self) -> None:
        """Restore PEFT's forward in every layer. The weights stay as they are; a second call does nothing."""
        for layer in self.layers.values():
            if _is_accelerated(layer):
                del layer.forward

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        """Return one line: the number of layers, and the kinds that keep PEFT's forward."""
        line = f"accelerate_lora: {len(self.layers)} of {len(self.layers) + len(self.left)} LoRA layers"
        return f"{line}; PEFT's forward stays for {_reasons(self.left)}" if self.left else line

    __repr__ = __str__


def accelerate_lora(model: nn.Module) -> Acceleration:
    """Give a model's LoRA layers a faster forward and backward pass; outputs and gradients are the same to rounding.

    It applies to linear layers with plain LoRA, at any rank and with any dropout, under autocast, with gradient checkpointing,
    and before and after a reallocation. y = x·Wᵀ + b + s·x·Aᵀ·Bᵀ is then one step of back-propagation, see fused_lora.

        model = get_peft_model(base, LoraConfig(r=8))
        accelerate_lora(model)

    No class, parameter or key changes, so saving needs no `undo()`. PEFT's forward runs for calls that need more: a disabled or
    merged adapter, several active ones, hooks on the layer's parts, other arguments (`adapter_names`), a trained base weight,
    or code under torch.compile, which fuses operations itself.

    Args:
        model: A PeftModel, or a transformers model with an adapter.

    Returns:
        The accelerated layers, the others with reasons, and `undo()`.

    Raises:
        ValueError: there is no LoRA layer, or it applies to none.
    """
    layers, left = {}, {}
    for name, layer in base_model(model).named_modules():
        if isinstance(layer, LoraLayer):
            if why := _why_not(layer):
                left[name] = why
            else:
                layers[name] = layer
    if not layers:
        found = (
            f"it applies to none of the {len(left)} LoRA layers: {_reasons(left)}" if left else "there is no LoRA layer"
        )
        raise ValueError(
            f"accelerate_lora: {found}. It is for plain LoRA on nn.Linear, by peft.get_peft_model or model.add_adapter"
        )
    for layer in layers.values():
        layer.forward = types.MethodType(forward, layer)
    acceleration = Acceleration(layers, left)
    if left:
        logger.info("%s", acceleration)
    return acceleration


def forward(self: Linear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Forward of an accelerated layer. It has the name of the method that it replaces, so unpickling restores PEFT's."""
    if args or kwargs or (call := _fused_call(self, x)) is None:
        plain: torch.Tensor = Linear.forward(self, x, *args, **kwargs)
        return plain
    return fused_lora(x, *call)


def _why_not(layer: LoraLayer) -> str | None:
    """Return why no call of a layer can be accelerated; None if some can."""
    base = layer.get_base_layer()
    if type(layer) is not Linear or type(base) is not nn.Linear:
        return f"LoRA on {type(base).__name__} ({type(layer).__module__.removeprefix('peft.tuners.')}.{type(layer).__name__})"
    if type(base.weight) is not nn.Parameter:
        return f"a base weight that is a {type(base.weight).__name__}"
    if layer.base_layer is not base:
        return "an adapter on top of another method's"
    if "forward" in vars(layer) and getattr(layer.forward, "__func__", None) not in (forward, Linear.forward):
        return "a forward that something else has replaced (as device_map does to offload)"
    plain = [name for name in layer.lora_A if name not in layer.lora_variant and not layer.lora_bias.get(name)]
    if not plain:
        variants = {type(v).__name__.removesuffix("LinearVariant") for v in layer.lora_variant.values()}
        return ", ".join(sorted(variants)) or ("lora_bias" if len(layer.lora_A) else "no adapter")
    return None


def _fused_call(layer: Linear, x: torch.Tensor) -> tuple[Any, ...] | None:
    """Return W, b, A, B, s and the dropout probability of the active adapter; None if PEFT's forward has to run.

    It runs at every call of every layer, so it reads dictionaries: an attribute of a module would cost a search each.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        or layer._disable_adapters
        or layer.merged_adapters
    ):
        return None
    parts = layer._modules
    base, downs = parts["base_layer"], parts["lora_A"]._modules
    active = [name for name in layer.active_adapters if name in downs]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    adapter = active[0]
    down, up, dropout = downs[adapter], parts["lora_B"]._modules[adapter], parts["lora_dropout"]._modules[adapter]
    watch = watch_of(down, up) if down._forward_hooks or up._forward_hooks else None
    if not (
        type(base) is type(down) is type(up) is nn.Linear
        and type(dropout) in (nn.Identity, nn.Dropout)
        and not (_has_hooks(base) or _has_hooks(down, watch) or _has_hooks(up, watch) or _has_hooks(dropout))
    ):
        return None
    W: Any = base._parameters["weight"]
    A: Any = down._parameters["weight"]
    B: Any = up._parameters["weight"]
    dtype, adapter_dtype, device = x.dtype, A.dtype, x.device
    if not (
        type(x) in (torch.Tensor, nn.Parameter)
        and type(W) is type(A) is type(B) is nn.Parameter
        and not W.requires_grad
        and up._parameters["bias"] is None
        and dtype in _DTYPES
        and adapter_dtype in _DTYPES
        and adapter_dtype == B.dtype
        and device == W.device == A.device
        and (dtype == adapter_dtype or layer.cast_input_dtype_enabled)
        and (dtype == W.dtype or (W.dtype in _DTYPES and torch.is_autocast_enabled(device.type)))
    ):
        return None
    p = dropout.p if type(dropout) is nn.Dropout and dropout.training else 0.0
    if p >= 1:
        return None
    return W, base._parameters["bias"], A, B, layer.scaling[adapter], p, watch


def _has_hooks(module: nn.Module, watch: FactorWatch | None = None) -> bool:
    """Return whether a hook or a replaced forward would miss its call, as fused_lora only reads the weight.

    The hooks of a watch do not: fused_lora tells the watch what they would see.
    """
    return bool(
        (module._forward_hooks and watch is None)
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def _is_accelerated(layer: nn.Module) -> bool:
    return getattr(vars(layer).get("forward"), "__func__", None) is forward


def _reasons(left: dict[str, str]) -> str:
    names: dict[str, list[str]] = {}
    for name, why in left.items():
        names.setdefault(why, []).append(name)
    most_first = sorted(names, key=lambda why: -len(names[why]))
    return "; ".join(f"{why}: {shortened(names[why], 3)}" for why in most_first)
