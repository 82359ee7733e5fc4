"""How many directions a matrix's update has, read from what has been learned: the singular values of Δ_k = s·B_k·A_k.

Uniform LoRA gives every matrix r directions. Where fewer are needed, the update's last singular values stay small; where more
are needed, the last one is as large as the others. So σ_r(Δ_k) at the end of the warm-up says what a further rank would hold,
which a gradient's norm does not: that says how much the loss depends on a matrix, however many directions it needs.

The factors are thin, so no d_out × d_in matrix is made: with B = Q_B·R_B and Aᵀ = Q_A·R_A the singular values of B·A are those
of R_B·R_Aᵀ, which is r × r.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.lora.layer import LoraLayer

from glora.lora.layout import whole
from glora.lora.matrix import by_rank_A, by_rank_B, experts, factors


def singular_values(layer: LoraLayer, adapter_name: str) -> torch.Tensor:
    """σ_1 ≥ ... ≥ σ_r of s·B·A, shape (r,), float32, on the layer's device; for a stack of experts √(Σ_e σ_{e,i}²).

    What is sharded is gathered, so every process has to ask. r is the adapter's rank, so a rank that exceeds min(d_in, d_out)
    ends in zeros.
    """
    A, B = (whole(factor.detach()) for factor in factors(layer, adapter_name))
    E, rank = experts(layer), layer.r[adapter_name]
    tall_A = by_rank_A(A, E, rank).float().transpose(1, 2)  # (E, d_in, r)
    tall_B = by_rank_B(B, E, rank).float().permute(2, 0, 1)  # (E, d_out, r)
    core = torch.linalg.qr(tall_B).R @ torch.linalg.qr(tall_A).R.transpose(1, 2)
    values = torch.linalg.svdvals(core).square().sum(0).sqrt() * abs(layer.scaling[adapter_name])
    return torch.nn.functional.pad(values, (0, rank - len(values)))


def last_singular_values(layers: Mapping[str, LoraLayer], adapter_name: str) -> dict[str, float]:
    """σ_r(Δ_k) of every layer by name. Waits for the device, once."""
    last = [singular_values(layer, adapter_name)[-1].cpu() for layer in layers.values()]
    return dict(zip(layers, torch.stack(last).tolist()))
