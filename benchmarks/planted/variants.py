"""The compared variants: uniform LoRA, the ranks as planted, and every way to get ranks from a warm-up.

A variant is a RankAllocationConfig and the allocator that reads it: the library's own, so that what is measured is what users
get, or a subclass that allocates by a rule which is only there for comparison.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from benchmarks.planted.task import PlantedTask, Setting, lora_of

from glora import RankAllocationConfig, RankAllocator
from glora.allocation.bounds import allocate_within_bounds
from glora.allocation.cut import cut_spectra
from glora.experiments.methods.glora import ShuffledRankAllocator
from glora.lora.matrix import LoraMatrix
from glora.scoring.spectrum import Spectra, spectra


class PlantedAllocator(RankAllocator):
    """Ranks in proportion to the teacher's: what an allocation is compared with that knows the truth."""

    planted: Mapping[str, int]

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        return allocate_within_bounds(self.adapter, self.config, self.total_rank, self.planted)


class SensitiveAllocator(PlantedAllocator):
    """Ranks in proportion to the teacher's and to the gradient norm: directions that are missing, times what each counts."""

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        scores = {name: norm * self.planted[name] for name, norm in self.norms.items()}
        return allocate_within_bounds(self.adapter, self.config, self.total_rank, scores)


class PowerAllocator(RankAllocator):
    """Ranks in proportion to g_k^p."""

    power: float

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        scores = {name: norm**self.power for name, norm in self.norms.items()}
        return allocate_within_bounds(self.adapter, self.config, self.total_rank, scores)


class RootAllocator(PowerAllocator):
    power = 0.5


class SquareAllocator(PowerAllocator):
    power = 2.0


class RelativeAllocator(RankAllocator):
    """Ranks in proportion to g_k / c_k."""

    def divisor(self, matrix: LoraMatrix) -> float:
        raise NotImplementedError

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        scores = {name: norm / self.divisor(self.adapter.matrices[name]) for name, norm in self.norms.items()}
        return allocate_within_bounds(self.adapter, self.config, self.total_rank, scores)


class PerWeightAllocator(RelativeAllocator):
    """c_k = ‖W_k‖_F of the frozen weight."""

    def divisor(self, matrix: LoraMatrix) -> float:
        return matrix.layer.get_base_layer().weight.norm().item()


class PerSizeAllocator(RelativeAllocator):
    """c_k = √(d_in·d_out), so that a score is the root mean square of G_k's elements."""

    def divisor(self, matrix: LoraMatrix) -> float:
        return math.sqrt(math.prod(matrix.shape))


class LearnedAllocator(RankAllocator):
    """Allocates by what has been learned by the end of the warm-up: the singular values σ_1 ≥ ... ≥ σ_r of Δ_k = s·B_k·A_k."""

    def learned(self) -> dict[str, list[float]]:
        return spectra(self.adapter.present)

    def score(self, values: list[float]) -> float:
        raise NotImplementedError

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        scores = {name: self.score(values) for name, values in self.learned().items()}
        return allocate_within_bounds(self.adapter, self.config, self.total_rank, scores)


class LearnedSizeAllocator(LearnedAllocator):
    """Ranks in proportion to ‖Δ_k‖_F."""

    def score(self, values: list[float]) -> float:
        return math.hypot(*values)


class LastValueAllocator(LearnedAllocator):
    """Ranks in proportion to σ_r(Δ_k), which is large where all r directions are in use."""

    def score(self, values: list[float]) -> float:
        return values[-1]


class SpectrumCutAllocator(LearnedAllocator):
    """One cut through what has been learned and its geometric continuation, σ_{r+j} = σ_r·(σ_r/σ_1)^{j/(r-1)}."""

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        continued = {}
        for name, values in self.learned().items():
            ratio = (values[-1] / values[0]) ** (1 / (len(values) - 1)) if len(values) > 1 and values[0] else 0.0
            longest = min(self.shapes[name])
            continued[name] = values + [values[-1] * ratio**j for j in range(1, longest - len(values) + 1)]
        return _cut(self, continued)


class GradientMeanAllocator(RankAllocator):
    """Keeps the sum of G_k over the warm-up, which needs signal="delta_exact" at every step."""

    def __init__(self, *arguments: Any) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        super().__init__(*arguments)

    def step(self) -> None:
        super().step()
        if self._recorder.ratios is not None:
            for name, G in self._recorder.ratios.products.items():
                self._sums[name] = self._sums[name] + G if name in self._sums else G.clone()

    def singular_values(self) -> dict[str, list[float]]:
        """Spectra of the mean gradient, but for a factor that is the same for all."""
        return {name: torch.linalg.svdvals(self._sums[name]).tolist() for name in self.adapter.matrices}


class GradientCutAllocator(GradientMeanAllocator):
    """Ranks by one cut through the singular values of all mean gradients."""

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        return _cut(self, self.singular_values())


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


class RescalingAllocator(RankAllocator):
    """GLoRA, but the scaling of a matrix falls with its rank: s_k = s·(r/r_k)^p.

    B is multiplied by c = s/s_k, so that the update stays. Its gradients are then 1/c times as large; Adam's moments follow.
    """

    power: float

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


class InverseRootScalingAllocator(RescalingAllocator):
    power = 0.5


class InverseScalingAllocator(RescalingAllocator):
    power = 1.0


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


class Trained(Protocol):
    """The rule that decides the ranks during one run."""

    @property
    def ranks(self) -> dict[str, int]: ...

    @property
    def norms(self) -> dict[str, float]: ...

    def step(self) -> None:
        """Called between the backward pass and the optimizer's step."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to get ranks.

    Attributes:
        what: For the table.
        allocator: What allocates; None trains uniform LoRA.
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
    every: float | None = None
    estimated: bool = False
    start: int = 1
    cuts: int = 1
    learning_rate: float | None = None

    @property
    def reads_budget(self) -> bool:
        """Return whether the setting's warm-up and budget make a difference."""
        return self.allocator is not None

    def task(self, setting: Setting, seed: int) -> PlantedTask:
        """The student with the adapter that it starts with."""
        return PlantedTask(setting, seed, lora_of(self.start * setting.rank))

    def allocate(self, task: PlantedTask, optimizer: torch.optim.Optimizer, seed: int) -> Trained | None:
        """Return the rule that decides the ranks of one run."""
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
        allocator = self.allocator(task.student, optimizer, config)
        if isinstance(allocator, PlantedAllocator):
            allocator.planted = task.planted
        return allocator


_EVERY_STEP = {"signal": "delta_exact", "exact_every": 1}

VARIANTS = {
    "uniform": Variant("uniform LoRA", None),
    "planted": Variant("in proportion to the teacher's ranks", PlantedAllocator),
    "planted_svd": Variant("in proportion to the teacher's ranks, keep = svd", PlantedAllocator, {"keep": "svd"}),
    "planted_times_norm": Variant("the teacher's rank × estimated norm", SensitiveAllocator, estimated=True),
    "delta": Variant("gradient norm (as proposed)"),
    "estimate": Variant("estimated norm", estimated=True),
    "shuffled": Variant("ranks by estimated norm, shuffled", ShuffledRankAllocator, estimated=True),
    "delta_exact": Variant("gradient norm, measured at every step", fields=_EVERY_STEP),
    "lora_b": Variant("raw norm of ∂L/∂B", fields={"signal": "lora_b"}),
    "per_weight": Variant("estimated norm / ‖W‖", PerWeightAllocator, estimated=True),
    "per_size": Variant("estimated norm / √(d_in·d_out)", PerSizeAllocator, estimated=True),
    "exponent_half": Variant("estimated norm, p = 0.5", RootAllocator, estimated=True),
    "exponent_two": Variant("estimated norm, p = 2", SquareAllocator, estimated=True),
    "learned": Variant("size of the Δ learned so far", LearnedSizeAllocator),
    "last_value": Variant("last singular value of Δ", LastValueAllocator),
    "last_value_svd": Variant("last singular value of Δ, keep = svd", LastValueAllocator, {"keep": "svd"}),
    "last_value_twice": Variant(
        "last singular value of Δ, keep = svd, twice", LastValueAllocator, {"keep": "svd", "min_rank": 1}, every=0.25
    ),
    "spectrum_cut": Variant("global cut, Δ continued", SpectrumCutAllocator),
    "spectrum_cut_svd": Variant("global cut, Δ continued, keep = svd", SpectrumCutAllocator, {"keep": "svd"}),
    "gradient_cut": Variant("global cut, mean gradient", GradientCutAllocator, _EVERY_STEP),
    "twice": Variant("estimated norm, reallocated twice", every=0.25, estimated=True),
    "keep_svd": Variant("estimated norm, keep = svd", fields={"keep": "svd"}, estimated=True),
    "inverse_sqrt": Variant("estimated norm, scaling ∝ 1/√r", InverseRootScalingAllocator, estimated=True),
    "inverse": Variant("estimated norm, scaling ∝ 1/r", InverseScalingAllocator, estimated=True),
    "zero_moment": Variant("estimated norm, second moment of new columns 0", ZeroMomentAllocator, estimated=True),
    "gradient_columns": Variant(
        "estimated norm, new columns along the gradient", GradientColumnsAllocator, estimated=True
    ),
}
