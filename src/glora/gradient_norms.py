"""‖∂L/∂Δ_k‖_F of every adapted matrix, from the gradients that back-propagation has already made.

With Δ = s·B·A and G = ∂L/∂Δ, back-propagation leaves ∂L/∂B = s·G·Aᵀ in `lora_B.weight.grad`. While A is near its random
initialisation (independent entries of mean 0 and one variance), G·Aᵀ is a random sketch of G:

    E‖G·Aᵀ‖² = ‖A‖_F²/d_in · ‖G‖_F²,   hence   ‖G‖_F ≈ ‖∂L/∂B‖_F · √d_in / (s·‖A‖_F).

That is the signal `delta`. It needs no hook, no further pass and no wait for the device: the norms of all matrices are
one fused call. `lora_b` is ‖∂L/∂B‖_F itself, for comparison; it underrates every matrix with a large d_in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from peft.tuners.lora.layer import LoraLayer

from glora.lora_layers import dimensions, factors

Signal = Literal["delta", "lora_b"]
SIGNALS: tuple[str, ...] = get_args(Signal)


class GradientNorms:
    """Reads the gradient norms of one adapter's matrices, after the backward pass and before the optimiser's step.

    Args:
        layers: The adapter's layers by module name. A layer must not be resized while this object is in use.
        adapter_name: The adapter.
        signal: "delta" or "lora_b", as above.
    """

    def __init__(self, layers: Mapping[str, LoraLayer], adapter_name: str, signal: Signal) -> None:
        self._A, self._B = zip(*(factors(layer, adapter_name) for layer in layers.values()))
        # Where a model is spread over devices, the norms are gathered on the first; a copy between devices is no sync.
        self.device = self._B[0].device
        self._zero = torch.zeros((), dtype=torch.float32, device=self.device)
        self._factor: torch.Tensor | None = None
        if signal == "delta":
            self._factor = torch.tensor(
                [math.sqrt(dimensions(x, adapter_name)[1]) / x.scaling[adapter_name] for x in layers.values()],
                dtype=torch.float32,
                device=self.device,
            )

    def read(self) -> torch.Tensor:
        """The norms of this step, shape (n,), float32, on the device, in the order of the layers.

        A matrix that took no part in the step (its gradient is None) counts as 0.

        Raises:
            RuntimeError: no matrix has a gradient, so the call came before backward() or after zero_grad().
        """
        present = [k for k, B in enumerate(self._B) if B.grad is not None]
        if not present:
            raise RuntimeError(
                f"none of the {len(self._B)} lora_B matrices has a gradient; "
                "call allocator.step() after loss.backward() and before optimizer.step() and zero_grad()"
            )
        norms = [self._zero] * len(self._B)
        of_B = _norms([self._B[k].grad for k in present])
        for k, norm in zip(present, of_B):
            norms[k] = norm.to(self.device, non_blocking=True)
        raw = torch.stack(norms)
        if self._factor is None:
            return raw
        of_A = torch.stack([norm.to(self.device, non_blocking=True) for norm in _norms(list(self._A))])
        # A sketch by A = 0 sees nothing: 0/0 must read as 0, not as NaN.
        return raw * self._factor / of_A.clamp_min(torch.finfo(torch.float32).tiny)


def _norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Frobenius norms, accumulated in float32 whatever the dtype: one fused kernel per device and dtype."""
    with torch.no_grad():
        return list(torch._foreach_norm(tensors, 2, dtype=torch.float32))
