"""Train wide, cut once: the library's rule from several starts, its control, and what might do better or is in use elsewhere.

`VARIANTS` has these beside the others. σ can be weighted by what a direction does rather than by its size: by the second
moments of the matrix's input (their diagonal is cheap), or by a Kronecker-factored Gauss-Newton metric of input and output,
which takes extra backward passes and shows how far a better score could lead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from benchmarks.planted.task import TARGETS, PlantedTask, Setting
from benchmarks.planted.variants import VARIANTS as NARROW
from benchmarks.planted.variants import Rule, Variant
from peft import AdaLoraConfig
from torch import nn

from glora import RankAllocator
from glora.experiments.methods.adalora import ORTHOGONALITY_WEIGHT
from glora.experiments.methods.limits import AdaLoraSchedule
from glora.lora.low_rank import singular_values
from glora.lora.matrix import LoraMatrix

METRIC_BATCHES = 16
"""Batches over which the second moments are averaged, just before the cut."""


Moments = Callable[[PlantedTask, list[LoraMatrix]], dict[str, tuple[torch.Tensor, torch.Tensor]]]
"""L_in (d_in, d_in) and L_out (d_out, d_out) of each matrix, where L·Lᵀ are second moments."""


def weighted_cut(moments: Moments) -> Rule:
    """Cut through the singular values of L_outᵀ·Δ_k·L_in.

    The weights decide the ranks alone: what is kept is Δ_k's best approximation, unweighted.
    """

    def rule(allocator: RankAllocator, task: PlantedTask) -> dict[str, int]:
        weighted, weights = {}, moments(task, allocator.adapter.present)
        for matrix in allocator.adapter.present:
            L_in, L_out = weights[matrix.name]
            A, B = matrix.A.detach() @ L_in, L_out.T @ matrix.B.detach()
            weighted[matrix.name] = (matrix.scaling * singular_values(A[None], B[None])[0]).tolist()
        return RankAllocator.allocate(allocator, weighted)

    return rule


def by_input(task: PlantedTask, matrices: list[LoraMatrix]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The diagonal of the input's second moments."""
    inputs, _ = _second_moments(task, matrices, gauss_newton=False)
    return {m.name: (inputs[m.name].diagonal().sqrt().diag(), torch.eye(m.shape[0])) for m in matrices}


def by_gauss_newton(task: PlantedTask, matrices: list[LoraMatrix]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The input's second moments and those of the gradients that a random direction of the output sends back."""
    inputs, outputs = _second_moments(task, matrices, gauss_newton=True)
    return {name: (_root(inputs[name]), _root(outputs[name])) for name in inputs}


def _second_moments(
    task: PlantedTask, matrices: list[LoraMatrix], *, gauss_newton: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """E[x·xᵀ] of each matrix's input and E[g·gᵀ] of its output's gradients, over the first batches of the training data."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    handles = []
    for matrix in matrices:
        handles.append(matrix.layer.register_forward_hook(_adds_to(inputs, matrix.name, lambda given, _out: given[0])))
        if gauss_newton:
            handles.append(
                matrix.layer.register_full_backward_hook(_adds_to(outputs, matrix.name, lambda _in, g: g[0]))
            )
    kept = [parameter.grad for parameter in task.student.parameters()]
    noise = torch.Generator().manual_seed(0)
    for tokens in task.training_tokens.split(16)[:METRIC_BATCHES]:
        with torch.set_grad_enabled(gauss_newton):
            states = task.states(tokens)
        if gauss_newton:
            signs = torch.randint(0, 2, states.shape, generator=noise) * 2.0 - 1
            (states * signs).sum().backward()
    for handle in handles:
        handle.remove()
    for parameter, gradient in zip(task.student.parameters(), kept):
        parameter.grad = gradient
    return inputs, outputs


def _adds_to(moments: dict[str, torch.Tensor], name: str, pick: Callable[[Any, Any], torch.Tensor]) -> Any:
    def hook(_module: nn.Module, given: Any, result: Any) -> None:
        rows = pick(given, result).detach().flatten(0, -2)
        moments[name] = moments.get(name, 0) + rows.T @ rows / len(rows)

    return hook


def _root(S: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(S)
    return vectors * values.clamp_min(0).sqrt()


class AdaLora:
    """PEFT's AdaLoRA as its authors run it: the penalty enters the loss, masks are renewed between step and zero_grad."""

    def __init__(self, task: PlantedTask, optimizer: torch.optim.Optimizer) -> None:
        self._student, self._steps = task.student, 0
        self.norms: dict[str, float] = {}
        optimizer.register_step_post_hook(lambda *_: self._allocate())

    @property
    def ranks(self) -> dict[str, int]:
        base = self._student.get_base_model()
        return {
            name: int((module.lora_E["default"] != 0).sum())
            for name, module in base.named_modules()
            if hasattr(module, "lora_E")
        }

    def step(self) -> None:
        """Add the gradient of the orthogonality penalty, which PEFT's forward adds to a loss that it knows."""
        factors = [(n, p) for n, p in self._student.named_parameters() if "lora_A" in n or "lora_B" in n]
        grams = [p @ p.T if "lora_A" in n else p.T @ p for n, p in factors]
        penalty = sum((gram - torch.eye(len(gram))).norm() for gram in grams) / len(grams)
        (ORTHOGONALITY_WEIGHT * penalty).backward()

    def _allocate(self) -> None:
        self._steps += 1
        self._student.base_model.update_and_allocate(self._steps)


@dataclasses.dataclass(frozen=True)
class AdaLoraVariant(Variant):
    """AdaLoRA from `start` times the rank, with the authors' schedule and a learning rate of its own."""

    start: float = 1.5
    allocator: None = None

    def task(self, setting: Setting, seed: int) -> PlantedTask:
        schedule = AdaLoraSchedule.of(setting.steps)
        init_r = math.ceil(self.start * setting.rank)
        adapter = AdaLoraConfig(
            init_r=init_r,
            target_r=setting.rank,
            lora_alpha=2 * init_r,
            target_modules=list(TARGETS),
            **dataclasses.asdict(schedule),
        )
        return PlantedTask(setting, seed, adapter)

    def allocate(self, task: PlantedTask, optimizer: torch.optim.Optimizer, seed: int) -> AdaLora:
        return AdaLora(task, optimizer)


_SPECTRUM, _UNIFORM = {"rule": "spectrum"}, {"rule": "uniform"}
ADALORA_RATES = (2e-2, 5e-2, 1e-1, 2e-1)

WIDE: dict[str, Variant] = {
    **{f"spectrum_{n}": Variant(f"spectrum, from {n}r", fields=_SPECTRUM, start=n) for n in (2, 4, 8)},
    **{f"uniform_cut_{n}": Variant(f"uniform cut, from {n}r (control)", fields=_UNIFORM, start=n) for n in (4, 8)},
    **{
        f"spectrum_4_cuts_{n}": Variant(f"spectrum, from 4r, {n} cuts", fields=_SPECTRUM, start=4, cuts=n)
        for n in (2, 4)
    },
    "spectrum_4_input": Variant(
        "spectrum, from 4r, weighted by the input", fields=_SPECTRUM, rule=weighted_cut(by_input), start=4
    ),
    "spectrum_4_gauss_newton": Variant(
        "spectrum, from 4r, Gauss-Newton metric", fields=_SPECTRUM, rule=weighted_cut(by_gauss_newton), start=4
    ),
    "wide": Variant("uniform LoRA of rank 4r (four times the parameters)", None, start=4),
}
ADALORA: dict[str, Variant] = {
    f"adalora_{start:g}_{rate:g}": AdaLoraVariant(
        f"AdaLoRA (PEFT), from {start:g}r, learning rate {rate:g}", start=start, learning_rate=rate
    )
    for start in (1.5, 4)
    for rate in ADALORA_RATES
}
VARIANTS: dict[str, Variant] = {**NARROW, **WIDE, **ADALORA}
