"""One LoRA layer, and its optimiser state, to a new rank.

The scaling s is held: with r the layer's α becomes s·r (s·√r under rsLoRA), so PEFT computes the same s from what is
saved. Growing appends rows to A as LoRA initialises them and zero columns to B, so that B·A does not change. Shrinking
from r to r' keeps the columns with the largest ‖A_i‖·‖B_i‖, the first ones, or the best rank-r' approximation of B·A in
the Frobenius norm, which by Eckart and Young (1936) leaves an error of exactly the discarded singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from glora.lora_layers import check_supported, dimensions, factors, has_adapter, remove_adapter, set_factors
from glora.optimizer_state import MEAN_OVER, STATE_KINDS, Carry, check_optimizer, replace_parameter

Keep = Literal["norm", "svd", "first"]
KEEP: tuple[str, ...] = get_args(Keep)


def resize_lora_layer(
    layer: LoraLayer,
    rank: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    adapter_name: str = "default",
    keep: Keep = "norm",
    generator: torch.Generator | None = None,
) -> None:
    """Give a LoRA layer another rank, in place.

    Call it between an optimiser step and the next forward pass: the gradients of the old factors go with them.

    Args:
        layer: A LoRA layer on an nn.Linear, with A of shape (r, d_in) and B of shape (d_out, r).
        rank: The new rank, from 0 to min(d_in, d_out). 0 takes the adapter out of this layer: what is left computes
            what the base layer computes.
        optimizer: The optimiser that holds A and B. The new factors take their places and, for kept columns, their
            state; see glora.optimizer_state for what new columns start with.
        adapter_name: The adapter to resize; others of the same layer stay as they are.
        keep: Which columns stay when the rank shrinks: "norm" the largest ‖A_i‖·‖B_i‖, "svd" the best approximation of
            B·A, "first" the first ones.
        generator: A CPU generator for the new rows of A; None uses torch's global one.

    Raises:
        ValueError: the rank is out of range, `keep` is unknown, the layer does not carry the adapter or is of a kind
            that is not supported, or the optimiser's state cannot be carried over. The layer is then as it was.
    """
    name = type(layer.get_base_layer()).__name__
    if not has_adapter(layer, adapter_name):
        raise ValueError(f"this LoRA layer on {name} has no adapter {adapter_name!r}; it has {sorted(layer.lora_A)}")
    check_supported(name, layer, adapter_name)
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r} is unknown; choose one of {', '.join(map(repr, KEEP))}")
    largest = min(dimensions(layer, adapter_name))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= largest:
        raise ValueError(f"rank={rank!r} must be an integer from 0 to min(d_in, d_out) = {largest}")
    if optimizer is not None:
        check_optimizer(optimizer)

    A, B = factors(layer, adapter_name)
    old_rank = A.shape[0]
    if rank == old_rank:
        return
    if rank == 0:
        if optimizer is not None:
            replace_parameter(optimizer, A, None)
            replace_parameter(optimizer, B, None)
        remove_adapter(layer, adapter_name)
        return

    with torch.no_grad():
        plan = _plan(A.detach().flatten(1), B.detach().flatten(1), rank, keep, generator)
        new_A = nn.Parameter(plan.A.view(rank, *A.shape[1:]), requires_grad=A.requires_grad)
        new_B = nn.Parameter(plan.B.view(B.shape[0], rank, *B.shape[2:]), requires_grad=B.requires_grad)
        if optimizer is not None:
            replace_parameter(optimizer, A, new_A, _carry(plan.of_A, dim=0, successor=new_A))
            replace_parameter(optimizer, B, new_B, _carry(plan.of_B, dim=1, successor=new_B))
    set_factors(layer, adapter_name, new_A, new_B)

    alpha = layer.lora_alpha[adapter_name]
    rslora = layer.use_rslora.get(adapter_name)
    alpha = alpha * math.sqrt(rank / old_rank) if rslora else alpha * rank / old_rank
    layer.r[adapter_name] = rank
    layer.lora_alpha[adapter_name] = int(alpha) if float(alpha).is_integer() else alpha


@dataclass(frozen=True)
class _Plan:
    """The new factors, and how anything that is kept per rank follows: either the kept columns or a mixing matrix.

    `of_A` and `of_B` give old ranks -> kept ranks: an index of shape (kept,), or a matrix of shape (kept, r) that a
    gradient of the factor is multiplied by. The remaining ranks up to the new one are new.
    """

    A: torch.Tensor
    B: torch.Tensor
    of_A: torch.Tensor
    of_B: torch.Tensor


def _plan(A: torch.Tensor, B: torch.Tensor, rank: int, keep: Keep, generator: torch.Generator | None) -> _Plan:
    old_rank = A.shape[0]
    if rank < old_rank and keep == "svd":
        kept_A, kept_B, of_A, of_B = _best_approximation(A, B, rank)
    else:
        if rank < old_rank and keep == "norm":
            size = A.float().norm(dim=1) * B.float().norm(dim=0)
            # Stable, so that equal columns are told apart by their place; sorted, so that the kept ones stay in order.
            index = torch.sort(size, descending=True, stable=True).indices[:rank].sort().values
        else:
            index = torch.arange(min(rank, old_rank), device=A.device)
        kept_A, kept_B, of_A, of_B = A[index], B[:, index], index, index
    born = rank - kept_A.shape[0]
    if born:
        rows = torch.empty(born, A.shape[1])
        nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)
        kept_A = torch.cat([kept_A, rows.to(A)])
        kept_B = torch.cat([kept_B, B.new_zeros(B.shape[0], born)], dim=1)
    return _Plan(kept_A.contiguous(), kept_B.contiguous(), of_A, of_B)


def _best_approximation(
    A: torch.Tensor, B: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """B'·A' = the truncated SVD of B·A, through QR of the thin factors, so that no d_out × d_in matrix is made.

    B = Q_B·R_B and Aᵀ = Q_A·R_A give B·A = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ; with R_B·R_Aᵀ = U·S·Vᵀ (r × r), B' = Q_B·U·√S and
    A' = √S·Vᵀ·Q_Aᵀ. Since B' = B·T_B and A' = T_A·A, the chain rule gives ∂L/∂A' = T_Bᵀ·∂L/∂A and ∂L/∂B' = ∂L/∂B·T_Aᵀ:
    those are the matrices by which the moments follow.

    Directions with no singular value are left out. B' and A' would both be zero there, and such a column never learns.
    """
    Q_B, R_B = torch.linalg.qr(B.float())
    Q_A, R_A = torch.linalg.qr(A.float().T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
    real = int((S[:rank] > S[0] * torch.finfo(S.dtype).eps * max(A.shape[1], B.shape[0])).sum()) if S[0] > 0 else 0
    root = S[:real].sqrt()
    left, right = U[:, :real] * root, root[:, None] * Vh[:real]
    T_B = torch.linalg.pinv(R_B) @ left  # (r, kept)
    T_A = right @ torch.linalg.pinv(R_A).T  # (kept, r)
    return (right @ Q_A.T).to(A.dtype), (Q_B @ left).to(B.dtype), T_B.T, T_A


def _carry(kept: torch.Tensor, *, dim: int, successor: nn.Parameter) -> Carry:
    """How a per-element state of a factor, whose rank is dimension `dim`, follows it to the new rank."""
    rank = successor.shape[dim]
    mixed = kept.dim() == 2

    def carry(key: str, state: torch.Tensor) -> torch.Tensor:
        kind = STATE_KINDS[key]
        if key in MEAN_OVER and MEAN_OVER[key] % state.dim() == dim:
            return state
        if kind == "average" and mixed:
            return successor.detach().to(state.dtype).clone()
        if mixed:
            # Of a sum Σ t_i·g_i of gradients, the mean square is Σ t_i²·v_i where they are uncorrelated.
            weight = kept.to(state.dtype) if kind == "first moment" else kept.to(state.dtype).square()
            old = torch.movedim(torch.tensordot(weight, state, dims=([1], [dim])), 0, dim)
        else:
            old = state.index_select(dim, kept)
        born = rank - old.shape[dim]
        if not born:
            return old.contiguous()
        if kind == "first moment":
            new = torch.zeros_like(state.narrow(dim, 0, 1))
        elif kind == "average":
            new = successor.detach().narrow(dim, old.shape[dim], born).to(state.dtype)
        else:
            new = (old if old.shape[dim] else state).mean(dim, keepdim=True)
        shape = list(state.shape)
        shape[dim] = born
        return torch.cat([old, new.expand(shape)], dim=dim).contiguous()

    return carry
