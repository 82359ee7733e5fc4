"""The ratio ‖G‖_F / ‖G·Aᵀ‖_F of each matrix, measured: it turns the norm of ∂L/∂B into that of ∂L/∂Δ.

    ‖G‖_F = ‖∂L/∂B‖_F / s · ‖G‖_F / ‖G·Aᵀ‖_F

The first factor has the units of the gradient that the optimizer uses. The second comes from the forward and backward passes,
and its units cancel, so clipping and a gradient scaler do not enter it. What a layer does to B's output before it adds it, as
DoRA's magnitude, is in the gradient of that output, g, as it is in ∂L/∂B. Products are summed over all micro-batches of an
optimizer step and over all processes, because a norm of a sum is not a sum of norms.

signal="delta" multiplies G by a random Ω ∈ R^{d_in×k} with entries ±1/√d_in, a new one at each measured step:

    gᵀ·[x·Aᵀ | x·Ω] = s·[G·Aᵀ | G·Ω],    E‖G·Ω‖² = k/d_in · ‖G‖²,    ratio = √(d_in/k) · ‖G·Ω‖ / ‖G·Aᵀ‖

That costs two thin products for each matrix: x·Ω of width k, and one with gᵀ of width r + k. Ω follows from the seed, the step
and d_in, so all processes and micro-batches use the same one, and a resumed run draws it again.

signal="delta_exact" forms G itself: tokens × d_in × d_out multiplications, and a float32 matrix of d_out × d_in that is kept
until the step ends; in several processes, an all-reduce of that matrix.

Steps that are not measured cost nothing, and no hook stays.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from glora.distributed.agreement import Processes
from glora.lora.factor_watch import FactorWatch
from glora.lora.layout import is_sharded
from glora.lora.matrix import LoraMatrix
from glora.messages import get_logger

logger = get_logger()
COLUMNS = 8
"""k. At β = 0.9 it misplaces 1 to 2 % of the ranks, k = 1 3 to 4 %: benchmarks/signal."""


def measured_steps(beta: float) -> int:
    """Return the number of steps before a reallocation at which the sketch is made: 3/(1-β).

    The average gives all earlier steps together the weight β^(3/(1-β)), which is below 5 %.
    """
    return round(3 / (1 - beta))


class SketchRatios:
    """Measured ‖G‖/‖G·Aᵀ‖ of each matrix, at the steps for which it is armed.

    Embeddings and stacks of experts, whose factors no forward pass calls as modules, are not measured: their ratio stays NaN.

    Args:
        matrices: The adapter's matrices.
        device: Where the ratios are gathered.
        processes: The processes that train the model together.
        columns: k; None measures G itself.
        seed: Seed of Ω.

    Raises:
        ValueError: `columns` is None and a layer is not LoRA on a linear layer.
    """

    def __init__(
        self,
        matrices: Iterable[LoraMatrix],
        device: torch.device,
        processes: Processes | None = None,
        *,
        columns: int | None = None,
        seed: int = 0,
    ) -> None:
        matrices = list(matrices)
        if columns is None and (other := next((m for m in matrices if not isinstance(_A(m), nn.Linear)), None)):
            raise ValueError(
                f'{other.name}: signal="delta_exact" measures linear layers only, and this is LoRA on '
                f'{type(other.layer.get_base_layer()).__name__}; use signal="delta"'
            )
        self._device, self._columns, self._seed = device, columns, seed
        self._processes = processes if processes is not None and processes.size > 1 else None
        self._watches = {k: _Watch(matrix) for k, matrix in enumerate(matrices) if _A(matrix) is not None}
        self._armed = self._warned = False
        self.ratios = torch.full((len(matrices),), torch.nan, dtype=torch.float32, device=device)

    def arm(self, step: int = 0) -> None:
        """Hook the layers for the coming step, of this number."""
        if self._armed:
            return
        self._armed = True
        drawn: dict[tuple[int, torch.device], torch.Tensor] = {}
        for watch in self._watches.values():
            size, device = watch.matrix.shape[1], watch.matrix.A.device
            if self._columns is not None and (size, device) not in drawn:
                omega = _draw(f"{self._seed}/{step}/{size}", self._columns, size)
                drawn[size, device] = omega.to(device, non_blocking=True)
            watch.start(drawn.get((size, device)))

    def disarm(self) -> None:
        """Remove the hooks, and what they kept."""
        if self._armed:
            for watch in self._watches.values():
                watch.stop()
        self._armed = False

    @property
    def products(self) -> Mapping[str, torch.Tensor]:
        """Products since `arm`, float32: s·G, shape (d_out, d_in), or s·[G·Aᵀ | G·Ω], shape (d_out, r + k).

        They go when the step has been made.
        """
        return {w.matrix.name: w.product for w in self._watches.values() if w.product is not None}

    def measure(self) -> None:
        """Take the ratios from the products since `arm`; a matrix that had none keeps its last ratio.

        Raises:
            RuntimeError: with signal="delta_exact", no hook saw the passes that made the gradients; or some processes have run
                out of batches.
        """
        watches = self._watches.values()
        if watches and not self.products and any(watch.matrix.B.grad is not None for watch in watches):
            self._report_unseen()
        products: Sequence[torch.Tensor | None] = [watch.product for watch in watches]
        if self._processes is not None and watches:
            self._processes.check_all_have_batches()
            products = self._summed(self._processes)
        ratios = list(self.ratios.unbind())
        for (k, watch), product in zip(self._watches.items(), products):
            if product is not None:
                ratio = watch.ratio(product).to(self._device, non_blocking=True)
                # where G = 0, or overflowed, nothing was measured
                ratios[k] = torch.where(ratio.isfinite(), ratio, ratios[k])
        self.ratios = torch.stack(ratios)

    def _summed(self, processes: Processes) -> list[torch.Tensor]:
        """Return the sums over the processes, all of which take part: one all-reduce of all sketches, or one for each G."""
        own = [w.zeros(self._columns) if w.product is None else w.product for w in self._watches.values()]
        if self._columns is None:
            return [processes.sum(product) for product in own]
        flat = processes.sum(torch.cat([product.to(self._device).flatten() for product in own]))
        return [part.view(one.shape) for part, one in zip(torch.split(flat, [one.numel() for one in own]), own)]

    def _report_unseen(self) -> None:
        if self._columns is None and self._processes is None:
            raise RuntimeError(
                'signal="delta_exact" saw none of the forward and backward passes that made these gradients; is the '
                'model compiled, or the adapter called in another way than by its layers? Use signal="delta"'
            )
        if not self._warned:
            self._warned = True
            logger.warning(
                "no hook saw the passes that made these gradients, as in compiled code, so ‖∂L/∂Δ‖ is estimated from ∂L/∂B as "
                "if A were random, which misplaces ranks as A learns; compile the model after the reallocation"
            )


class _Watch(FactorWatch):
    """The products of one matrix."""

    def __init__(self, matrix: LoraMatrix) -> None:
        super().__init__()
        self.matrix = matrix
        self.product: torch.Tensor | None = None
        self._omega: torch.Tensor | None = None
        self._B: nn.Parameter | None = None
        self._version: int | None = None

    def start(self, omega: torch.Tensor | None) -> None:
        """Hook the layer; Ω as (k, d_in), None for G itself."""
        self._omega = omega
        self._B = self.matrix.B  # the optimizer's: within a forward pass under fully_shard the layer has another
        self.attach(self.matrix)

    def stop(self) -> None:
        """Remove the hooks, and what they kept."""
        self.detach()
        self.product = self._omega = self._B = self._version = None

    def begin(self) -> None:
        """Drop the product if the gradients were cleared since: it is of another step.

        A gradient scaler that skips its step, or a batch that was given up after an error, cannot be noticed otherwise.
        """
        B = self._B
        if self.product is None or B is None or torch._C._current_graph_task_id() != -1:  # -1: not within backward()
            return
        if is_sharded(B) and self._version is None:
            return  # between micro-batches fully_shard keeps the gradient elsewhere
        if B.grad is None or self._version not in (None, B.grad._version):
            self.product = self._version = None

    def prepare(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Return x, or [h | x·Ω] with the columns in the last dimension."""
        if self._omega is None:
            return x.detach()
        omega, A = self._omega.to(x.dtype), _A(self.matrix)
        if isinstance(A, nn.Linear):
            return torch.cat([h, nn.functional.linear(x, omega).to(h.dtype)], -1)
        by_omega = A._conv_forward(x, omega.view(-1, *A.weight.shape[1:]), None)
        return torch.cat([h, by_omega.to(h.dtype)], 1).movedim(1, -1)

    def add(self, gradient: torch.Tensor, prepared: torch.Tensor) -> None:
        """Add the product of a backward pass."""
        if self._B is None:
            return  # the step is over
        if not isinstance(_A(self.matrix), nn.Linear):
            gradient = gradient.movedim(1, -1)
        gradient, prepared = (t.reshape(-1, t.shape[-1]) for t in (gradient, prepared))
        with torch.autocast(gradient.device.type, enabled=False):  # backward() may have been called within one
            if self._omega is None:
                product = gradient.float().T @ prepared.float()
            else:
                product = (prepared.to(gradient.dtype).T @ gradient).T.float()
        self.product = product if self.product is None else self.product + product

    def zeros(self, columns: int | None) -> torch.Tensor:
        """Return the product of a process that saw no pass."""
        d_out, d_in = self.matrix.shape
        return torch.zeros(d_out, d_in if columns is None else self.matrix.rank + columns, device=self.matrix.A.device)

    def ratio(self, product: torch.Tensor) -> torch.Tensor:
        """Return ‖G‖/‖G·Aᵀ‖ from the product of a whole step."""
        if self._B is not None and self._B.grad is not None:
            self._version = self._B.grad._version
        with torch.autocast(product.device.type, enabled=False):
            if self._omega is None:
                by_A, size = product @ self.matrix.A.detach().float().T, torch.linalg.norm(product)
            else:
                columns = self._omega.shape[0]
                by_A, by_omega = torch.split(product, [self.matrix.rank, columns], 1)
                size = torch.linalg.norm(by_omega) * math.sqrt(self.matrix.shape[1] / columns)
            ratio: torch.Tensor = size / torch.linalg.norm(by_A)
            return ratio


def check_not_compiled(model: nn.Module, *, will_be: bool = False) -> None:
    """Reject compiled models: compiled code does not call hooks that come and go.

    Args:
        model: The model as it is trained.
        will_be: The model is going to be compiled.
    """
    if will_be or any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules()):
        raise ValueError(
            'signal="delta_exact" measures with hooks that come and go, which compiled code does not call; use '
            'signal="delta", or train without torch.compile'
        )


def _draw(seed: str, columns: int, size: int) -> torch.Tensor:
    """Return Ω as (k, d_in), drawn on the CPU, so that every device has the same."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1)
    return (torch.randint(0, 2, (columns, size), generator=generator) * 2 - 1) / math.sqrt(size)


def _A(matrix: LoraMatrix) -> Any:
    """Return the module A, or None where the forward pass calls none: an embedding, a stack of experts."""
    if isinstance(matrix.layer, ParamWrapper) or matrix.adapter_name not in matrix.layer.lora_A:
        return None
    return matrix.layer.lora_A[matrix.adapter_name]
