"""The columns of a matrix at another rank, and the optimizer state that follows them. Tensors only.

Growing appends rows to A as LoRA initializes them and zero columns to B, so that B·A does not change. Shrinking from r to r'
keeps the columns with the largest ‖A_i‖·‖B_i‖, the first ones, or the best rank-r' approximation of B·A in the Frobenius norm
(of each expert's, in a stack), see glora.lora.low_rank.

Factors have the rank in the middle here: A is (E, r, d_in) and B is (d_out, r, E), see glora.lora.matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from glora.config import Keep
from glora.lora.low_rank import best_approximation
from glora.lora.optimizer_state import MEAN_OVER, STATE_KINDS, Carry

# count -> new columns, A (E, count, d_in) and B (d_out, count, E)
NewColumns = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def by_rank_A(t: torch.Tensor, E: int, rank: int) -> torch.Tensor:
    """Reshape A, or a state of A, from (E·r, ...) as PEFT stores it to (E, r, d_in)."""
    return t.reshape(E, rank, math.prod(t.shape[1:]))


def by_rank_B(t: torch.Tensor, E: int, rank: int) -> torch.Tensor:
    """Reshape B, or a state of B, from (d_out, r·E, ...) as PEFT stores it to (d_out, r, E)."""
    return t.reshape(t.numel() // (rank * E) if rank else t.shape[0], rank, E)


def as_stored(
    A: torch.Tensor, B: torch.Tensor, like: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (E, r, d_in) and B (d_out, r, E) as PEFT stores them: like the factors of this matrix at another rank."""
    return A.reshape(-1, *like[0].shape[1:]), B.reshape(B.shape[0], -1, *like[1].shape[2:])


@dataclass(frozen=True)
class Columns:
    """The factors at the new rank, and how the state that the optimizer keeps for each rank follows.

    `of_A` and `of_B` map the old ranks to the kept ones: an index of shape (kept,), or matrices of shape (E, kept, r) that
    multiply a gradient of the factor. The ranks after the kept ones are new.
    """

    A: torch.Tensor
    B: torch.Tensor
    of_A: torch.Tensor
    of_B: torch.Tensor


def columns_at(A: torch.Tensor, B: torch.Tensor, rank: int, keep: Keep, new_columns: NewColumns) -> Columns:
    """Return the columns of B·A at another rank.

    Args:
        A: Shape (E, r, d_in).
        B: Shape (d_out, r, E).
        rank: The new rank, at least 1.
        keep: Which columns stay where the rank shrinks.
        new_columns: Makes the columns that the matrix grows by.
    """
    old_rank = A.shape[1]
    if rank < old_rank and keep == "svd":
        kept_A, kept_B, T_A, T_B = best_approximation(A, B.permute(2, 0, 1), rank)
        kept_A, kept_B = kept_A.to(A.dtype), kept_B.permute(1, 2, 0).to(B.dtype)
        # ∂L/∂A' = s·B'ᵀ·G = T_Bᵀ·∂L/∂A and ∂L/∂B' = s·G·A'ᵀ = ∂L/∂B·T_Aᵀ: so do the moments follow
        of_A, of_B = T_B.transpose(1, 2), T_A
    else:
        if rank < old_rank and keep == "norm":
            # of all experts together: they share the rank, and Σ_e ‖A_ei‖²·‖B_ei‖² is the size of column i in the whole stack
            size = (A.float().square().sum(2).T * B.float().square().sum(0)).sum(1)
            # Stable, so that the first of equal columns stays; sorted, so that the kept ones stay in order.
            index = torch.sort(size, descending=True, stable=True).indices[:rank].sort().values
        else:
            index = torch.arange(min(rank, old_rank), device=A.device)
        kept_A, kept_B, of_A, of_B = A[:, index], B[:, index], index, index
    if added := rank - kept_A.shape[1]:
        new_A, new_B = new_columns(added)
        kept_A, kept_B = torch.cat([kept_A, new_A], dim=1), torch.cat([kept_B, new_B], dim=1)
    return Columns(kept_A, kept_B, of_A, of_B)


def carry_state(kept: torch.Tensor, successor: torch.Tensor, dim: int, E: int, old_rank: int) -> Carry:
    """Return what carries the optimizer state of a factor to the new rank.

    Args:
        kept: `of_A` or `of_B` of the new columns.
        successor: The new factor, as PEFT stores it.
        dim: The dimension of the factor along which its ranks are: 0 for A, 1 for B.
        E: Experts.
        old_rank: r.
    """
    by_rank = by_rank_A if dim == 0 else by_rank_B
    rank = successor.shape[dim] // E
    mixed = kept.dim() == 3
    mix = "ekr,erd->ekd" if dim == 0 else "ekr,dre->dke"

    def carry(key: str, state: torch.Tensor) -> torch.Tensor:
        kind = STATE_KINDS[key]
        if key in MEAN_OVER and MEAN_OVER[key] % successor.dim() == dim:
            return state
        own = successor.detach().to(state.dtype)
        if kind == "average" and mixed:
            return own.clone()
        old = by_rank(state, E, old_rank)
        if mixed:
            # Of a sum Σ t_i·g_i of gradients, the mean square is Σ t_i²·v_i where they are uncorrelated.
            weight = kept.to(state.dtype) if kind == "first moment" else kept.to(state.dtype).square()
            follow = torch.einsum(mix, weight, old)
        else:
            follow = old.index_select(1, kept)
        if added := rank - follow.shape[1]:
            if kind == "first moment":
                new = torch.zeros_like(old[:, :1])
            elif kind == "average":
                new = by_rank(own, E, rank)[:, follow.shape[1] :]
            else:
                new = (follow if follow.shape[1] else old).mean(1, keepdim=True)
            follow = torch.cat([follow, new.expand(-1, added, -1)], dim=1)
        # The state is as long along the ranks as the factor; a mean over the other dimension may have dropped that one.
        place = min(dim, state.dim() - 1)
        return follow.reshape([E * rank if i == place else n for i, n in enumerate(state.shape)]).contiguous()

    return carry
