"""How much of a gradient its LoRA sketch shows, measured: ‖G‖_F / ‖G·Aᵀ‖_F.

The signal `delta` takes the expectation √d_in/‖A‖_F for this ratio, which holds while A is random and drifts as A aligns with
G. Here s·G = s·∂L/∂Δ = Σ (gradient of B's output)ᵀ·(input of A) is formed for a whole optimizer step, over all its
micro-batches, from hooks on the forward and backward pass of the two factors; s cancels in the ratio. What a layer does to
B's output before it adds it, as DoRA's magnitude, is in that gradient as it is in ∂L/∂B. Between two measurements the last
ratio is used, so

    ‖G‖_F = ‖∂L/∂B‖_F / s · ‖G‖_F / ‖G·Aᵀ‖_F

is exact at a measured step, in the units of the gradient that the optimizer uses: whatever clipping and a gradient scaler do
to ∂L/∂B is in the first factor, and cancels in the second.

In several processes G is summed over them, since a norm of a sum is not a sum of norms.

A measured step costs, for each matrix, a product as large as its weight's own gradient (tokens × d_in × d_out) and a float32
matrix of d_out × d_in that lives until the step ends; in several processes, an all-reduce of that matrix. Other steps cost
nothing, and no hook is left behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.distributed.agreement import Processes
from glora.lora.matrix import LoraMatrix


class SketchRatios:
    """Measured ‖G‖/‖G·Aᵀ‖ of each matrix, at the steps for which it is armed.

    Args:
        matrices: The adapter's matrices.
        device: Where the ratios are gathered.
        processes: The processes that train the model together.

    Raises:
        ValueError: a layer is not LoRA on a linear layer.
    """

    def __init__(
        self,
        matrices: Iterable[LoraMatrix],
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self._matrices = {matrix.name: matrix for matrix in matrices}
        if other := next((matrix for matrix in self._matrices.values() if not _is_linear(matrix)), None):
            raise ValueError(
                f'{other.name}: signal="delta_exact" measures linear layers only, and this is LoRA on '
                f'{type(other.layer.get_base_layer()).__name__}; use signal="delta"'
            )
        self._device = device
        self._processes = processes if processes is not None and processes.size > 1 else None
        self._gradients: dict[str, torch.Tensor] = {}
        self._inputs: dict[str, torch.Tensor] = {}
        self._measured: dict[str, int] = {}  # what the gradient of B was when it was measured: its version
        self._handles: list[RemovableHandle] = []
        self.ratios = torch.full((len(self._matrices),), torch.nan, dtype=torch.float32, device=device)

    def arm(self) -> None:
        """Hook the layers for the coming step."""
        if self._handles:
            return
        for name, matrix in self._matrices.items():
            layer = matrix.layer
            down, up = layer.lora_A[matrix.adapter_name], layer.lora_B[matrix.adapter_name]
            self._handles += [
                layer.register_forward_pre_hook(self._begin(name)),
                # what A sees is the layer's input after dropout and cast, which is what Δ multiplies
                down.register_forward_pre_hook(self._keep_input(name)),
                up.register_forward_hook(self._watch_output(name)),
            ]

    def disarm(self) -> None:
        """Remove the hooks, and what they kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gradients.clear()
        self._inputs.clear()
        self._measured.clear()

    @property
    def gradients(self) -> Mapping[str, torch.Tensor]:
        """G of the matrices that had one since `arm`, shape (d_out, d_in), float32; they go when the step has been made."""
        return self._gradients

    def measure(self) -> None:
        """Take the ratios from the gradients gathered since `arm`; a matrix that had none keeps its last ratio.

        Raises:
            RuntimeError: the adapter has gradients and no hook saw them come, or some processes have run out of batches.
        """
        if not self._gradients and self._processes is None:
            if all(matrix.B.grad is None for matrix in self._matrices.values()):
                return
            raise RuntimeError(
                'signal="delta_exact" saw none of the forward and backward passes that made these gradients; is the '
                'model compiled, or the adapter called in another way than by its layers? Use signal="delta"'
            )
        if self._processes is not None:
            self._processes.check_all_have_batches()
        ratios = list(self.ratios.unbind())
        for k, (name, matrix) in enumerate(self._matrices.items()):
            A, B = matrix.factors
            G = self._gradients.get(name)
            if self._processes is not None:
                # the norm of the sum over all batches, which no process could tell from its own; and all must take part
                G = self._processes.sum(torch.zeros(matrix.shape, device=A.device) if G is None else G)
            if G is None:
                continue
            with torch.autocast(G.device.type, enabled=False):
                whole, sketch = torch.linalg.norm(G), torch.linalg.norm(G @ A.detach().float().T)
            ratio = (whole / sketch).to(self._device, non_blocking=True)
            ratios[k] = torch.where(ratio.isfinite(), ratio, ratios[k])  # G = 0, or overflowed: nothing was measured
            if B.grad is not None:
                self._measured[name] = B.grad._version
        self.ratios = torch.stack(ratios)

    def _begin(self, name: str) -> Any:
        """Before a forward pass, drop what was gathered if the gradients were cleared meanwhile: it is of another step.

        A gradient scaler that skips its step, or a batch that was given up after an error, cannot be noticed otherwise.
        """

        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._inputs.pop(name, None)  # of a pass that broke off, as recomputing a checkpointed segment may
            if name not in self._gradients or torch._C._current_graph_task_id() != -1:  # -1: not within backward()
                return
            gradient = self._matrices[name].B.grad
            if gradient is None or self._measured.get(name, gradient._version) != gradient._version:
                self._gradients.pop(name)
                self._measured.pop(name, None)

        return hook

    def _keep_input(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                self._inputs[name] = inputs[0].detach()

        return hook

    def _watch_output(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x = self._inputs.pop(name, None)
            if x is not None and output.requires_grad:
                output.register_hook(lambda gradient: self._add(name, gradient, x))  # type: ignore[no-untyped-call]

        return hook

    def _add(self, name: str, gradient: torch.Tensor, x: torch.Tensor) -> None:
        if not self._handles:
            return  # the step is over
        with torch.autocast(gradient.device.type, enabled=False):  # backward() may have been called within one
            product = gradient.flatten(0, -2).float().T @ x.flatten(0, -2).float()
        known = self._gradients.get(name)
        self._gradients[name] = product if known is None else known + product


def refuse_compiled(model: nn.Module, *, will_be: bool = False) -> None:
    """Reject compiled models: compiled code does not call hooks that come and go, and the expectation would be used silently.

    Args:
        model: The model as it is trained.
        will_be: The model is going to be compiled.

    Raises:
        ValueError: the model, or a part of it, is compiled.
    """
    if will_be or any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
        raise ValueError(
            'signal="delta_exact" measures with hooks that come and go, which compiled code does not call; use '
            'signal="delta", or train without torch.compile'
        )


def _is_linear(matrix: LoraMatrix) -> bool:
    # the wrapper of an expert parameter has Linears for factors, but never calls them
    layer, name = matrix.layer, matrix.adapter_name
    linear = name in layer.lora_A and isinstance(layer.lora_A[name], nn.Linear)
    return linear and not isinstance(layer, ParamWrapper)
