"""The compared variants: uniform LoRA, the ranks as planted, and every way to get ranks from a warm-up.

A variant is a RankAllocationConfig and the allocator that reads it: the library's own, so that what is measured is what users
get, with a rule or in a subclass that is only there for comparison.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from benchmarks.planted.task import PlantedTask, Setting, lora_of

from glora import RankAllocationConfig, RankAllocator
from glora.allocation.bounds import allocate_within_bounds
from glora.allocation.cut import cut_spectra
from glora.experiments.methods.glora import ShuffledRankAllocator
from glora.lora.matrix import LoraMatrix
from glora.scoring.spectrum import Spectra, spectra

Rule = Callable[[RankAllocator, PlantedTask], dict[str, int]]
"""(allocator at the end of its warm-up, task) -> ranks."""


def proportional(scores: Callable[[RankAllocator, PlantedTask], Mapping[str, float]]) -> Rule:
    """Ranks in proportion to scores."""
    return lambda allocator, task: allocate_within_bounds(
        allocator.adapter, allocator.config, allocator.total_rank, scores(allocator, task)
    )


def by_norm(score: Callable[[float, LoraMatrix, PlantedTask], float]) -> Rule:
    """Ranks in proportion to a score of each matrix, made from its gradient norm g_k."""
    return proportional(
        lambda allocator, task: {
            name: score(norm, allocator.adapter.matrices[name], task) for name, norm in allocator.norms.items()
        }
    )


def by_spectrum(score: Callable[[list[float]], float]) -> Rule:
    """Ranks in proportion to a score of the singular values σ_1 ≥ ... ≥ σ_r of what was learned, Δ_k = s·B_k·A_k."""
    return proportional(
        lambda allocator, _: {name: score(values) for name, values in spectra(allocator.adapter.present).items()}
    )


def cut_of_continued_spectra(allocator: RankAllocator, _task: PlantedTask) -> dict[str, int]:
    """One cut through what has been learned and its geometric continuation, σ_{r+j} = σ_r·(σ_r/σ_1)^{j/(r-1)}."""
    continued = {}
    for name, values in spectra(allocator.adapter.present).items():
        ratio = (values[-1] / values[0]) ** (1 / (len(values) - 1)) if len(values) > 1 and values[0] else 0.0
        longest = min(allocator.shapes[name])
        continued[name] = values + [values[-1] * ratio**j for j in range(1, longest - len(values) + 1)]
    return _cut(allocator, continued)


class RuleAllocator(RankAllocator):
    """Allocates by a rule that is only there for comparison."""

    rule: Rule
    task: PlantedTask

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        return self.rule(self, self.task)


class GradientCutAllocator(RankAllocator):
    """Ranks by one cut through the spectra of all ΣG_k over the warm-up, which needs signal="delta_exact" at every step."""

    def __init__(self, *arguments: Any) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        super().__init__(*arguments)

    def step(self) -> None:
        super().step()
        if self._recorder.ratios is not None:
            for name, G in self._recorder.ratios.products.items():
                self._sums[name] = self._sums[name] + G if name in self._sums else G.clone()

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        return _cut(self, {name: torch.linalg.svdvals(self._sums[name]).tolist() for name in self.adapter.matrices})


class ZeroMomentAllocator(RankAllocator):
    """GLoRA, but new columns start with a second moment of zero."""

    def _reallocate(self) -> None:
        before = self.ranks
        super()._reallocate()
        for name, (A, B) in _grown(self, before).items():
            self._optimizer.state[A]["exp_avg_sq"][before[name] :] = 0
            self._optimizer.state[B]["exp_avg_sq"][:, before[name] :] = 0


class GradientColumnsAllocator(RankAllocator):
    """GLoRA, but new columns lie along the gradient's leading directions instead of at random.

    Of G only left directions are known: Adam's first moment of B is the running mean of s·G·Aᵀ. So a new column of B is a left
    singular vector of it, outside of the directions that B has, and its row of A is zero: B·A stays, and the row's first
    gradient s·b_iᵀ·G is the right direction that goes with it. A column of B has the norm that LoRA gives a row of A, 1/√3.
    There are as many as the old rank; any more are drawn at random, as usual.
    """

    def _reallocate(self) -> None:
        before, moments = self.ranks, {}
        for matrix in self.adapter.present:
            moments[matrix.name] = self._optimizer.state[matrix.B]["exp_avg"].clone()
        super()._reallocate()
        with torch.no_grad():
            for name, (A, B) in _grown(self, before).items():
                old = before[name]
                Q = torch.linalg.qr(B[:, :old])[0]
                outside = moments[name] - Q @ (Q.T @ moments[name])
                left = torch.linalg.svd(outside, full_matrices=False)[0][:, : B.shape[1] - old]
                B[:, old : old + left.shape[1]] = left / 3**0.5
                A[old : old + left.shape[1]] = 0


class InverseScalingAllocator(RankAllocator):
    """GLoRA, but the scaling of a matrix falls with its rank: s_k = s·(r/r_k)^p.

    B is multiplied by c = s/s_k, so that the update stays. Its gradients are then 1/c times as large; Adam's moments follow.
    """

    power = 1.0

    def _reallocate(self) -> None:
        before = self.ranks
        super()._reallocate()
        for matrix in self.adapter.present:
            layer, name = matrix.layer, matrix.adapter_name
            c = (matrix.rank / before[matrix.name]) ** self.power
            with torch.no_grad():
                matrix.B.mul_(c)
            state = self._optimizer.state[matrix.B]
            state["exp_avg"].div_(c)
            state["exp_avg_sq"].div_(c * c)
            layer.scaling[name] /= c
            layer.lora_alpha[name] /= c


class InverseRootScalingAllocator(InverseScalingAllocator):
    power = 0.5


def _grown(
    allocator: RankAllocator, before: Mapping[str, int]
) -> dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """A and B of the matrices with new columns, which come after the old ones."""
    names = [name for name, rank in allocator.ranks.items() if rank > before[name]]
    return {name: allocator.adapter.matrices[name].factors for name in names}


def _cut(allocator: RankAllocator, spectra: Mapping[str, list[float]]) -> dict[str, int]:
    """One cut through all spectra, at what R_total ranks cost spread evenly."""
    costs = {name: matrix.cost for name, matrix in allocator.adapter.matrices.items()}
    if allocator.config.budget_unit == "rank":
        costs = dict.fromkeys(costs, 1)
    return cut_spectra(spectra, budget=allocator.total_rank * sum(costs.values()) / len(costs), costs=costs).ranks


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to get ranks.

    Attributes:
        what: For the table.
        allocator: What allocates; None trains uniform LoRA.
        rule: What decides the ranks, where that is not the allocator's own.
        fields: Of RankAllocationConfig, beside warm-up, budget and seed.
        every: Share of the steps between two reallocations, where there are two.
        estimated: Norms are ‖∂L/∂B‖_F·√d_in/(s·‖A‖_F), as if A were random, which was the default before the sketch.
        start: Rank at the start, over the setting's.
        cuts: Number of cuts; the last one is at the end of the setting's warm-up.
        learning_rate: Its own, where the setting's is not its own scale.
    """

    what: str
    allocator: type[RankAllocator] | None = RankAllocator
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rule: Rule | None = None
    every: float | None = None
    estimated: bool = False
    start: float = 1
    cuts: int = 1
    learning_rate: float | None = None

    @property
    def reads_budget(self) -> bool:
        """Return whether the setting's warm-up and budget make a difference."""
        return self.allocator is not None

    def task(self, setting: Setting, seed: int) -> PlantedTask:
        """The student with the adapter that it starts with."""
        return PlantedTask(setting, seed, lora_of(self.start * setting.rank))

    def allocate(self, task: PlantedTask, optimizer: torch.optim.Optimizer, seed: int) -> RankAllocator | None:
        """Return the allocator of one run."""
        if self.allocator is None:
            return None
        setting, fields, warmup = task.setting, dict(self.fields), task.setting.warmup_steps
        if self.every is not None:
            fields |= {"reallocate_every": round(self.every * setting.steps), "max_reallocations": 2}
        if "rule" in fields:
            fields["average_rank"] = setting.rank
        if self.cuts > 1:
            warmup //= self.cuts
            fields |= {"reallocate_every": warmup, "max_reallocations": self.cuts}
        config = RankAllocationConfig(warmup_steps=warmup, budget=setting.budget, seed=seed, **fields)
        if self.rule is None:
            return self.allocator(task.student, optimizer, config)
        allocator = RuleAllocator(task.student, optimizer, config)
        allocator.rule, allocator.task = self.rule, task
        return allocator


_EVERY_STEP, _SVD = {"signal": "delta_exact", "exact_every": 1}, {"keep": "svd"}
_PLANTED = proportional(lambda _, task: task.planted)  # what an allocation is compared with that knows the truth
_LAST_VALUE = by_spectrum(lambda values: values[-1])  # σ_r is large where all r directions are in use

VARIANTS = {
    "uniform": Variant("uniform LoRA", None),
    "planted": Variant("in proportion to the teacher's ranks", rule=_PLANTED),
    "planted_svd": Variant("in proportion to the teacher's ranks, keep = svd", fields=_SVD, rule=_PLANTED),
    "planted_times_norm": Variant(
        "the teacher's rank × estimated norm",
        rule=by_norm(lambda norm, matrix, task: norm * task.planted[matrix.name]),
        estimated=True,
    ),
    "delta": Variant("gradient norm (as proposed)"),
    "estimate": Variant("estimated norm", estimated=True),
    "shuffled": Variant("ranks by estimated norm, shuffled", ShuffledRankAllocator, estimated=True),
    "delta_exact": Variant("gradient norm, measured at every step", fields=_EVERY_STEP),
    "lora_b": Variant("raw norm of ∂L/∂B", fields={"signal": "lora_b"}),
    "per_weight": Variant(
        "estimated norm / ‖W‖",
        rule=by_norm(lambda norm, matrix, _: norm / matrix.layer.get_base_layer().weight.norm().item()),
        estimated=True,
    ),
    "per_size": Variant(
        "estimated norm / √(d_in·d_out)",  # the root mean square of G_k's elements
        rule=by_norm(lambda norm, matrix, _: norm / math.sqrt(math.prod(matrix.shape))),
        estimated=True,
    ),
    "exponent_half": Variant("estimated norm, p = 0.5", rule=by_norm(lambda norm, *_: norm**0.5), estimated=True),
    "exponent_two": Variant("estimated norm, p = 2", rule=by_norm(lambda norm, *_: norm**2), estimated=True),
    "learned": Variant("size of the Δ learned so far", rule=by_spectrum(lambda values: math.hypot(*values))),
    "last_value": Variant("last singular value of Δ", rule=_LAST_VALUE),
    "last_value_svd": Variant("last singular value of Δ, keep = svd", fields=_SVD, rule=_LAST_VALUE),
    "last_value_twice": Variant(
        "last singular value of Δ, keep = svd, twice", fields={**_SVD, "min_rank": 1}, rule=_LAST_VALUE, every=0.25
    ),
    "spectrum_cut": Variant("global cut, Δ continued", rule=cut_of_continued_spectra),
    "spectrum_cut_svd": Variant("global cut, Δ continued, keep = svd", fields=_SVD, rule=cut_of_continued_spectra),
    "gradient_cut": Variant("global cut, mean gradient", GradientCutAllocator, _EVERY_STEP),
    "twice": Variant("estimated norm, reallocated twice", every=0.25, estimated=True),
    "keep_svd": Variant("estimated norm, keep = svd", fields=_SVD, estimated=True),
    "inverse_sqrt": Variant("estimated norm, scaling ∝ 1/√r", InverseRootScalingAllocator, estimated=True),
    "inverse": Variant("estimated norm, scaling ∝ 1/r", InverseScalingAllocator, estimated=True),
    "zero_moment": Variant("estimated norm, second moment of new columns 0", ZeroMomentAllocator, estimated=True),
    "gradient_columns": Variant(
        "estimated norm, new columns along the gradient", GradientColumnsAllocator, estimated=True
    ),
}
