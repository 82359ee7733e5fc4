"""A smaller adapter with as much of what it has learned as fits: one global cut after training.

    Δ_k = s_k·B_k·A_k = Σ_i σ_ki·u_ki·v_kiᵀ     of each matrix k
    keep the directions with the largest σ_ki²/c_k     until the size is reached

c_k is what a direction costs: d_in + d_out parameters, or 1 rank. By Eckart and Young (1936) no other adapter of these ranks
is closer to Δ, and Σ σ² over the kept directions, the energy, says how close. Scalings stay: where a rank falls, its α falls
with it. No data is needed, no base model, and no d_out × d_in matrix is made.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args

import torch
from peft import LoraConfig
from torch import nn

from glora.allocation.cut import cut_spectra, cut_uniformly
from glora.config import Budget, SettingError, is_int, is_number, one_of, plain_number
from glora.lora.adapter import RankedAdapter
from glora.lora.discovery import adapted_model, peft_configs
from glora.lora.following import adapter_in
from glora.lora.layout import is_sharded
from glora.lora.matrix import alpha_holding
from glora.lora.peft_config import describe_ranks
from glora.lora.resize import as_stored, by_rank_A, by_rank_B, columns_at
from glora.lora.saved_adapter import SavedAdapter, SavedMatrix, check_output, check_product, load_adapter
from glora.messages import pluralize
from glora.scoring.spectrum import Factored, Spectra, spectra

WAYS = ("average_rank", "parameters", "energy")
"""Fields of a `Size`, of which one is given."""


@dataclass(frozen=True)
class Size:
    """The size of a smaller adapter, by the arguments of `compress_adapter`.

    Raises:
        ValueError: not exactly one of average_rank, parameters and energy is given, or a field is out of range.
    """

    average_rank: float | None = None
    parameters: float | None = None
    energy: float | None = None
    budget: str = "parameters"
    min_rank: int = 0
    max_rank: int | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain_number(getattr(self, field.name)))
        given = self.given
        if len(given) != 1:
            named = " and ".join(f"{{{name}}}" for name in given) or "no size"
            raise SettingError(f"{named} given; give one of {', '.join(WAYS)}", **given)
        if self.budget not in get_args(Budget):
            raise ValueError(f"budget={self.budget!r} must be {one_of(Budget, self.budget)}")
        if self.average_rank is not None and not is_number(self.average_rank, 0):
            raise SettingError("{average_rank} must be a number above 0, such as 4", **given)
        if self.energy is not None and not (is_number(self.energy, 0) and self.energy <= 1):
            raise SettingError("{energy} must be above 0 and at most 1, such as 0.95 or 95%", **given)
        if self.parameters is not None and self.budget == "rank":
            raise SettingError("{parameters} does not go with {budget}; give {average_rank}", budget="rank", **given)
        share = isinstance(self.parameters, float) and 0 < self.parameters <= 1
        if self.parameters is not None and not (share or is_int(self.parameters, 1)):
            raise SettingError(
                "{parameters} must be a share of at most all, such as 0.25, or a whole number of parameters", **given
            )
        if not is_int(self.min_rank, 0) or not (self.max_rank is None or is_int(self.max_rank, max(self.min_rank, 1))):
            raise SettingError(
                "{min_rank} and {max_rank}: ints, the first at least 0, the second no less and above 0",
                min_rank=self.min_rank,
                max_rank=self.max_rank,
            )

    @property
    def given(self) -> dict[str, float]:
        """The size as it was given, by its name."""
        return {name: value for name in WAYS if (value := getattr(self, name)) is not None}

    def limit(self, costs: Mapping[str, int], ranks: Mapping[str, int]) -> dict[str, float]:
        """Return the budget, or the energy, that a cut of an adapter with these ranks may use."""
        if self.energy is not None:
            return {"energy": self.energy} if self.energy < 1 else {"budget": math.inf}
        has = sum(costs[name] * rank for name, rank in ranks.items())
        if self.parameters is not None:
            return {"budget": self.parameters * (has if isinstance(self.parameters, float) else 1)}
        assert self.average_rank is not None
        asked, mean = self.average_rank * sum(costs.values()), has / sum(costs.values())
        if asked >= has:
            raise SettingError(
                f"{{average_rank}} is not below the adapter's own: it has the parameters of rank {mean:.4g} in every matrix; "
                f"give for example {mean / 4:.2g}",
                **self.given,
            )
        return {"budget": asked}

    def bounds(self, matrices: Mapping[str, Factored]) -> tuple[dict[str, int], dict[str, int]]:
        """Return the smallest and the largest rank of each matrix."""
        high = {name: m.rank if self.max_rank is None else min(self.max_rank, m.rank) for name, m in matrices.items()}
        low = {name: min(max(self.min_rank, m.min_supported_rank[0]), high[name]) for name, m in matrices.items()}
        return low, high


@dataclass(frozen=True, repr=False)
class Compression:
    """The result of a cut; `str()` gives it in one line.

    Attributes:
        ranks_before, ranks: The rank of each matrix by name; 0 without an adapter.
        energy: Share of Σ_k ‖Δ_k‖_F² that is kept.
        parameters_before, parameters: Parameters of all A and B.
        path: The folder that was written; None if the model in memory was changed, or nothing.
        unspent: What `max_rank` leaves of the budget, in parameters or in ranks.
        budget: "parameters" or "rank".
    """

    ranks_before: dict[str, int]
    ranks: dict[str, int]
    energy: float
    parameters_before: int
    parameters: int
    path: Path | None = None
    unspent: float = 0
    budget: str = "parameters"

    def __str__(self) -> str:
        removed = [name for name, rank in self.ranks.items() if rank == 0]
        share = self.parameters / self.parameters_before
        without = f"; {pluralize(len(removed), 'matrix')} without an adapter" if removed else ""
        left = pluralize(int(self.unspent), "parameter" if self.budget == "parameters" else "rank")
        unspent = f"; max_rank leaves {left} of the budget unspent" if self.unspent >= 1 else ""
        where = f": {self.path}" if self.path else ""
        return (
            f"kept {_percent(self.energy)} of the update's energy in {sum(self.ranks.values()):,} of "
            f"{sum(self.ranks_before.values()):,} ranks, {self.parameters:,} of {self.parameters_before:,} parameters "
            f"({_percent(share)}){without}{unspent}{where}"
        )

    def __repr__(self) -> str:
        """Return one line; the ranks of a large model would fill a screen."""
        return f"Compression({self})"


def compress_adapter(
    model_or_folder: nn.Module | str | Path,
    *,
    average_rank: float | None = None,
    parameters: float | None = None,
    energy: float | None = None,
    budget: str = "parameters",
    min_rank: int = 0,
    max_rank: int | None = None,
    uniform: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    adapter_name: str = "default",
) -> Compression:
    """Cut a trained LoRA adapter down to the directions that carry most of its update.

        compress_adapter("my-adapter", parameters=0.25, output="smaller")

    Give one of `average_rank`, `parameters` and `energy`.

    Args:
        model_or_folder: A folder with a PEFT LoRA adapter, or its id on the hub, which needs no base model; or a model with an
            adapter. Make an optimizer only after its model was cut.
        average_rank: Mean rank r̄ over the n matrices; the adapter then costs at most r̄·Σ_k (d_in + d_out) parameters.
        parameters: Size of the new adapter: as a float a share of its parameters, such as 0.25; as an int their number.
        energy: Share of Σ_k ‖Δ_k‖_F² to keep, such as 0.99, in as few parameters as that takes. 1 keeps everything.
        budget: What a direction costs: "parameters", d_in + d_out, or "rank", 1; then `average_rank` bounds Σ r_k = n·r̄.
        min_rank: Directions that every matrix keeps.
        max_rank: Most directions of a matrix. Default: all it has.
        uniform: Give every matrix the same rank, or all of its own if that is lower.
        output: Folder for the new adapter. Default: the model in memory is changed.
        overwrite: Replace an adapter that `output` holds. Other files in it stay as they are.
        adapter_name: The adapter to cut, of a model.

    Returns:
        The ranks, the energy kept and the parameters. A matrix at rank 0 is not in the new adapter, and
        `exclude_modules` names it. With DoRA, lora_bias and experts a matrix keeps at least rank 1.

    Raises:
        ValueError: not exactly one size is given, or it is out of range or pays for no direction; the bounds contradict each
            other; there is no such LoRA adapter, its files are damaged, or a factor holds inf or NaN; it is more than B·A,
            or its initialization changed the base weights; a folder is given without `output`, or `output` holds an adapter.
        TypeError: the model is neither a model nor a folder.
    """
    folder = isinstance(model_or_folder, str | os.PathLike)
    if output is None and folder:
        raise ValueError(f"{model_or_folder} is a folder, and output is missing; give the folder for the new adapter")
    size = Size(average_rank, parameters, energy, budget, min_rank, max_rank, uniform)
    if output is not None:
        directory = check_output(output, model_or_folder, overwrite)
        adapter = CompressibleAdapter(model_or_folder, adapter_name)
        return adapter.write(adapter.cut(size), directory)
    ranked = _ranked(model_or_folder, adapter_name)  # type: ignore[arg-type]
    matrices = {matrix.name: matrix for matrix in ranked.present}
    made = _cut(matrices, _finite_spectra(matrices), size)
    ranked.set_ranks(dict.fromkeys(ranked.matrices, 0) | made.ranks, keep="svd")
    return made


class CompressibleAdapter:
    """An adapter whose spectra are computed once, to be cut to several sizes."""

    def __init__(self, model_or_folder: nn.Module | str | Path, adapter_name: str = "default") -> None:
        self.saved = load_adapter(model_or_folder, adapter_name)
        folder = isinstance(model_or_folder, str | os.PathLike)
        name = str(model_or_folder) if folder else f"adapter {adapter_name!r}"
        check_product(self.saved.config, name, "cut")
        if self.saved.config.ensure_weight_tying and any(matrix.embedding for matrix in self.saved.matrices.values()):
            raise ValueError(
                f"{name} has ensure_weight_tying=True: tied matrices cannot have different ranks; merge it"
            )
        if inner := next((inner for inner in self.saved.matrices if ".base_layer." in inner), None):
            # PEFT looks for its rank under another name than it is saved by
            raise ValueError(f"{name} has LoRA in nn.MultiheadAttention ({inner}), which is not supported; merge it")
        self._spectra = _finite_spectra(self.saved.matrices)

    def cut(self, size: Size) -> Compression:
        """Return the ranks at a size; nothing is written."""
        return _cut(self.saved.matrices, self._spectra, size)

    def cut_to_share(self, share: float, like: Size) -> Compression:
        """Return the ranks at a share of the parameters, or of the ranks under that budget, within the bounds of a size."""
        if like.budget == "parameters":
            return self.cut(replace(like, average_rank=None, parameters=float(share), energy=None))
        if share >= 1:
            return self.cut(replace(like, average_rank=None, energy=1.0))
        mean = sum(matrix.rank for matrix in self.saved.matrices.values()) / len(self.saved.matrices)
        return self.cut(replace(like, average_rank=share * mean, energy=None))

    def write(self, made: Compression, directory: Path) -> Compression:
        """Write the adapter with the ranks of a cut into a folder; this object stays as it is."""
        config, others = copy.deepcopy(self.saved.config), dict(self.saved.others)
        matrices: dict[str, SavedMatrix] = {}
        for name, matrix in self.saved.matrices.items():
            if made.ranks[name]:
                matrices[name] = _at_rank(matrix, made.ranks[name], root=config.use_rslora)
                continue
            inner = f"{matrix.prefix}base_layer."  # where a LoRA layer has the weights of the module that it wraps
            others = {k.replace(inner, matrix.prefix) if k.startswith(inner) else k: v for k, v in others.items()}
        describe_ranks(config, made.ranks, {name: m.alpha for name, m in matrices.items()}, config.exclude_modules)
        return replace(made, path=SavedAdapter(config, matrices, others).write(directory))


def _ranked(model: nn.Module, adapter_name: str) -> RankedAdapter:
    """Return the adapter of a model in memory, frozen or not, if its ranks can be cut."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a model with an adapter, or the folder of a saved adapter")
    if isinstance(config := peft_configs(adapted_model(model)).get(adapter_name), LoraConfig):
        check_product(config, f"adapter {adapter_name!r}", "cut")
    ranked = adapter_in(model, adapter_name, trainable=False)
    if any(map(is_sharded, ranked.factors)):
        raise ValueError("fully_shard has spread the adapter over processes; save it, and compress the folder")
    return ranked


def _finite_spectra(matrices: Mapping[str, Factored]) -> Spectra:
    for name, matrix in matrices.items():
        for factor, tensor in (("A", matrix.A), ("B", matrix.B)):
            if not torch.isfinite(tensor.float().norm()):  # which would overflow in Δ as well
                raise ValueError(
                    f"{name} has inf, NaN or numbers above 1e19 in its {factor}; use an earlier checkpoint"
                )
    return spectra(matrices.values())


def _cut(matrices: Mapping[str, Factored], spectra: Spectra, size: Size) -> Compression:
    """Return the ranks of a size."""
    costs = {name: matrix.cost if size.budget == "parameters" else 1 for name, matrix in matrices.items()}
    before = {name: matrix.rank for name, matrix in matrices.items()}
    limit, (low, high) = size.limit(costs, before), size.bounds(matrices)
    if not any(value for values in spectra.values() for value in values):
        raise ValueError("B·A is 0 in every matrix: the adapter has learned nothing that could be kept")
    rule = cut_uniformly if size.uniform else cut_spectra
    cut = rule(spectra, costs=costs, min_ranks=low, max_ranks=high, **limit)
    if not any(cut.ranks.values()):
        (way,) = size.given
        raise SettingError(f"{{{way}}} pays for no direction of any matrix; raise it", **size.given)
    used, held = (sum(ranks[name] * matrix.cost for name, matrix in matrices.items()) for ranks in (cut.ranks, before))
    whole, most = (sum(ranks[name] * cost for name, cost in costs.items()) for ranks in (before, high))
    unspent = max(0.0, min(limit.get("budget", 0), whole) - most)
    return Compression(before, cut.ranks, cut.kept, held, used, unspent=unspent, budget=size.budget)


def _at_rank(matrix: SavedMatrix, rank: int, *, root: bool) -> SavedMatrix:
    """Return the best approximation of a matrix at a lower rank, with the same scaling."""
    if rank == matrix.rank:
        return matrix
    A, B = by_rank_A(matrix.A, matrix.experts, matrix.rank), by_rank_B(matrix.B, matrix.experts, matrix.rank)

    def unused(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Directions that add nothing and can be trained, where a matrix has fewer than its rank."""
        new_A, new_B = A[:, :count], B[:, :count]
        return (torch.zeros_like(new_A), new_B) if matrix.embedding else (new_A, torch.zeros_like(new_B))

    columns = columns_at(A, B, rank, "svd", unused)
    new_A, new_B = as_stored(columns.A, columns.B, like=(matrix.A, matrix.B))
    alpha = alpha_holding(matrix.alpha, matrix.rank, rank, root=root)
    return replace(matrix, A=new_A, B=new_B, rank=rank, alpha=alpha)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %" if share < 0.995 else f"{100 * share:.4g} %"
