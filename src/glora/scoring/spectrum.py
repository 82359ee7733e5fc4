"""Spectra: the singular values σ_k1 ≥ ... ≥ σ_kr of what each matrix has learned, Δ_k = s·B_k·A_k.

Matrices of one shape and rank are decomposed together (`glora.lora.low_rank`), as many as MAX_BYTES of factors hold, so a model
costs a handful of batched calls at any depth. The spectrum depends on Δ_k alone: however Δ_k is factored, the singular
values are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from glora.lora.layout import whole
from glora.lora.low_rank import singular_values
from glora.lora.matrix import LoraMatrix
from glora.lora.resize import by_rank_A, by_rank_B
from glora.lora.saved_adapter import SavedMatrix

Spectra = dict[str, list[float]]
Factored = LoraMatrix | SavedMatrix
MAX_BYTES = 2**28
"""Factors, as float32, that are stacked at once: 128 matrices of 4096 × 4096 at rank 64, more than a batched decomposition
gains by. All factors of a shape, which FSDP2 gathers from their shards, would be 1.5 GB for gate and up of Llama-3-70B."""


def spectra(matrices: Iterable[Factored]) -> Spectra:
    """Return the singular values of each matrix's Δ = s·B·A by name, in descending order: r numbers, computed in float32.

    For a stack of E experts they are √(Σ_e σ_{e,i}²). Waits for the device. Sharded factors are gathered, so with FSDP2 every
    process has to call it; each gathers at most MAX_BYTES at once, or one matrix.

    Args:
        matrices: Matrices of rank 1 or more.
    """
    matrices = list(matrices)
    groups: dict[tuple[object, ...], list[Factored]] = {}
    for matrix in matrices:
        groups.setdefault((matrix.shape, matrix.rank, matrix.experts, matrix.A.device), []).append(matrix)
    found: Spectra = {}
    for members in (chunk for group in groups.values() for chunk in _chunks(group)):
        values = singular_values(*_stacked(members)).view(len(members), -1, members[0].rank).square().sum(1).sqrt()
        scaling = torch.tensor([abs(matrix.scaling) for matrix in members], device=values.device)
        found |= zip((matrix.name for matrix in members), (values * scaling[:, None]).tolist())
    return {matrix.name: found[matrix.name] for matrix in matrices}


def _chunks(matrices: list[Factored]) -> Iterator[list[Factored]]:
    """Split matrices of one shape, as every process does: by their shape and rank alone."""
    bytes_of_one = torch.float32.itemsize * matrices[0].rank * matrices[0].cost
    size = max(1, MAX_BYTES // bytes_of_one)
    return (matrices[start : start + size] for start in range(0, len(matrices), size))


def _stacked(matrices: list[Factored]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A as (n·E, r, d_in) and B as (n·E, d_out, r), float32, of matrices of one shape."""
    E, r = matrices[0].experts, matrices[0].rank
    A = torch.cat([by_rank_A(whole(matrix.A.detach()).float(), E, r) for matrix in matrices])
    B = torch.cat([by_rank_B(whole(matrix.B.detach()).float(), E, r).permute(2, 0, 1) for matrix in matrices])
    return A, B
