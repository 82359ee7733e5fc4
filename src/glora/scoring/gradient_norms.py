"""‖∂L/∂Δ_k‖_F of every adapted matrix, from the gradients that back-propagation has already made.

With Δ = s·B·A and G = ∂L/∂Δ, back-propagation leaves ∂L/∂B = s·G·Aᵀ in the gradient of B. While A is near its random
initialization (independent entries of mean 0 and one variance), G·Aᵀ is a random sketch of G:

    E‖G·Aᵀ‖² = ‖A‖_F²/d_in · ‖G‖_F²,   hence   ‖G‖_F ≈ ‖∂L/∂B‖_F · √d_in / (s·‖A‖_F).

The estimate drifts as A aligns with G. So the signals `delta` and `delta_exact` measure ‖G‖/‖G·Aᵀ‖ instead, see
glora.scoring.sketch_ratios; the estimate is used where nothing was measured. `lora_b` is ‖∂L/∂B‖_F itself, for comparison.
The norms of all matrices are one fused call, and nothing waits for the device.

For a stack of E experts √d_in becomes √(E·d_in), since ‖A‖_F then counts E matrices. An embedding is the other way round:
A starts at zero and B at random, so ∂L/∂A = s·Bᵀ·G is the sketch, and A and B, d_in and d_out change places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from glora.config import Signal
from glora.lora.layout import local, norms_of_whole
from glora.lora.matrix import LoraMatrix


class GradientNorms:
    """Gradient norms of one adapter's matrices, read after the backward pass and before the optimizer's step.

    Args:
        matrices: The adapter's matrices, all of rank 1 or more; there may be none. A matrix that is resized needs a new object.
        signal: "lora_b" for ‖∂L/∂B‖, another for ‖G‖.
    """

    def __init__(self, matrices: Iterable[LoraMatrix], signal: Signal) -> None:
        matrices = list(matrices)
        self.names = tuple(matrix.name for matrix in matrices)
        self._raw = signal == "lora_b"
        self._trained = [matrix.zero_factor for matrix in matrices]
        self._random = [matrix.random_factor for matrix in matrices]
        # Where a model is spread over devices, the norms are gathered on the first; such copies do not wait.
        self.device = self._trained[0].device if matrices else torch.device("cpu")
        self._zero = torch.zeros((), dtype=torch.float32, device=self.device)
        self._one_over_s = self._vector([1 / matrix.scaling for matrix in matrices])
        self._sqrt_d = self._vector([math.sqrt(matrix.random_factor.numel() / matrix.rank) for matrix in matrices])

    def read(self, ratios: torch.Tensor | None = None) -> torch.Tensor:
        """Return the norms of this step, shape (n,), float32, on the device, in the order of the matrices.

        A matrix that took no part in the step (its gradient is None) counts as 0.

        Args:
            ratios: ‖G‖/‖G·Aᵀ‖ of each matrix as measured, shape (n,). √d_in/‖A‖ is used where it is
                NaN, and by default.

        Raises:
            RuntimeError: no matrix has a gradient, so the call came before backward() or after zero_grad().
        """
        if not self._trained:
            return torch.zeros(0, device=self.device)
        present = [k for k, factor in enumerate(self._trained) if factor.grad is not None]
        if not present:
            raise RuntimeError(
                f"none of the {len(self._trained)} LoRA matrices has a gradient; "
                "call allocator.step() after loss.backward() and before optimizer.step() and zero_grad()"
            )
        norms = [self._zero] * len(self._trained)
        gradients = [g for k in present if (g := self._trained[k].grad) is not None]
        for k, norm in zip(present, self._norms(gradients)):
            norms[k] = norm
        if not self._raw:
            norms += self._norms([p.detach() for p in self._random])
        sketch, *of_random = torch.split(norms_of_whole(torch.stack(norms), self._trained[0]), len(self._trained))
        if self._raw:
            return sketch
        # A sketch by A = 0 sees nothing: 0/0 must read as 0, not as NaN.
        expected = self._sqrt_d / of_random[0].clamp_min(torch.finfo(torch.float32).tiny)
        ratio = expected if ratios is None else torch.where(ratios.isnan(), expected, ratios)
        return sketch * self._one_over_s * ratio

    def _norms(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return Frobenius norms, summed in float32 for every dtype: one fused kernel for each device and dtype."""
        norms = torch._foreach_norm([local(tensor) for tensor in tensors], 2, dtype=torch.float32)
        return [norm.to(self.device, non_blocking=True) for norm in norms]

    def _vector(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


class NormAverage:
    """Moving average of the gradient norms, over the steps whose norms are all finite.

        g_k ← β·g_k + (1-β)·‖G_k‖_F     from g_k = 0

    It stays on the device, and waits for the device only when its values are read.

    Attributes:
        names: The matrices.
        steps: Steps added so far, those that were left out included.
    """

    def __init__(self, names: Sequence[str], beta: float, device: torch.device) -> None:
        self.names, self._beta, self.steps = tuple(names), beta, 0
        self._values = torch.zeros(len(self.names), dtype=torch.float32, device=device)
        self._left_out = torch.zeros((), dtype=torch.int64, device=device)
        self._non_finite = torch.zeros(len(self.names), dtype=torch.int64, device=device)

    def add(self, norms: torch.Tensor) -> None:
        """Add the norms of one step, shape (n,); a step with inf or NaN is counted and left out."""
        finite = torch.isfinite(norms)
        average = self._beta * self._values + (1 - self._beta) * norms
        self._values = torch.where(finite.all(), average, self._values)
        self._left_out += ~finite.all()
        self._non_finite += ~finite
        self.steps += 1

    @property
    def values(self) -> dict[str, float]:
        """g_k by name. Waits for the device, as all properties do."""
        return dict(zip(self.names, self._values.tolist()))

    @property
    def left_out(self) -> int:
        """Number of steps that were left out."""
        return int(self._left_out.item())

    @property
    def ever_non_finite(self) -> list[str]:
        """The matrices whose norm was inf or NaN at some step."""
        return [name for name, count in zip(self.names, self._non_finite.tolist()) if count]

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "norms": self.values,
            "recorded_steps": self.steps,
            "non_finite_steps": self.left_out,
            "non_finite_norms": dict(zip(self.names, self._non_finite.tolist())),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; by name, because JSON may have sorted the names."""
        self.steps = state["recorded_steps"]
        self._values.copy_(torch.tensor([state["norms"][name] for name in self.names]))
        self._left_out.fill_(state["non_finite_steps"])
        self._non_finite.copy_(torch.tensor([state["non_finite_norms"][name] for name in self.names]))
