"""Hooks on the two factors of a LoRA layer, for PEFT's forward and for one that computes with their weights.

PEFT's forward calls the modules A and B, so hooks on them see its tensors. A forward that only reads their weights
(glora.acceleration) finds the watch by `watch_of`, and calls `prepare` and `add` itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.lora.matrix import LoraMatrix


class FactorWatch:
    """Watch over the forward and backward passes of one matrix; this class ignores them, a subclass overrides the methods.

    A copied or saved model comes with this class in place of the subclass, so it is not watched.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._prepared: torch.Tensor | None = None

    def begin(self) -> None:
        """Note that a forward pass of the layer begins."""

    def prepare(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor | None:
        """Return what `add` needs of a forward pass, or None to leave the pass out.

        Args:
            x: Input of A, after dropout and cast.
            h: Output of A.
        """
        return None

    def add(self, gradient: torch.Tensor, prepared: torch.Tensor) -> None:
        """Take the gradient of B's output, and what `prepare` returned."""

    def attach(self, matrix: LoraMatrix) -> None:
        """Hook the layer, and A and B, which must be modules that the layer calls."""
        layer, name = matrix.layer, matrix.adapter_name
        self._handles = [
            layer.register_forward_pre_hook(self._before_layer),
            layer.lora_A[name].register_forward_hook(self._after_A),
            layer.lora_B[name].register_forward_hook(self._after_B),
        ]

    def detach(self) -> None:
        """Remove the hooks, and what they kept."""
        for handle in self._handles:
            handle.remove()
        self._prepared = None

    def __reduce__(self) -> Any:
        return FactorWatch, ()

    # torch.compile would make the hooks a part of the graph

    def _before_layer(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self._prepared = None  # of a pass that broke off, as recomputing a checkpointed segment may
            self.begin()

    def _after_A(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            with torch.no_grad():
                self._prepared = self.prepare(inputs[0], output)

    def _after_B(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if torch.compiler.is_compiling():
            return
        prepared, self._prepared = self._prepared, None
        if prepared is not None and output.requires_grad:
            output.register_hook(lambda gradient: self.add(gradient, prepared))  # type: ignore[no-untyped-call]


def watch_of(*modules: nn.Module) -> FactorWatch | None:
    """Return the watch whose hooks are the only forward hooks of these modules, if there is one."""
    owners = {getattr(hook, "__self__", None) for module in modules for hook in module._forward_hooks.values()}
    watch = owners.pop() if len(owners) == 1 else None
    return watch if isinstance(watch, FactorWatch) else None
