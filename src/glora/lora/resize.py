"""One LoRA layer, and its optimiser state, to a new rank.

The scaling s is held: with r the layer's α becomes s·r (s·√r under rsLoRA), so PEFT computes the same s from what is
saved. Where another s' is asked for, the factor that LoRA starts at zero (B; an embedding's A) is multiplied by c = s/s', so
that s·B·A stays; its gradients are then divided by c, and what the optimiser keeps of them follows.

Growing appends rows to A as LoRA initialises them and zero columns to B, so that B·A does not change. Shrinking from r to r'
keeps the columns with the largest ‖A_i‖·‖B_i‖, the first ones, or the best rank-r' approximation of B·A in the Frobenius norm,
which by Eckart and Young (1936) leaves an error of exactly the discarded singular values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from glora.lora.discovery import check_layer, min_supported_rank
from glora.lora.matrix import (
    by_rank_A,
    by_rank_B,
    dimensions,
    experts,
    factors,
    has_adapter,
    random_factor,
    remove_adapter,
    set_factors,
)
from glora.lora.optimizer_state import (
    MEAN_OVER,
    POWERS_OF_THE_GRADIENT,
    STATE_KINDS,
    Carry,
    check_optimizer,
    replace_parameter,
)

Keep = Literal["norm", "svd", "first"]
KEEP: tuple[str, ...] = get_args(Keep)


def resize_lora_layer(
    layer: LoraLayer,
    rank: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    adapter_name: str = "default",
    keep: Keep = "norm",
    init_lora_weights: bool | str = True,
    generator: torch.Generator | None = None,
    scaling: float | None = None,
) -> None:
    """Give a LoRA layer another rank, in place.

    Call it between an optimiser step and the next forward pass: the gradients of the old factors go with them.

    Args:
        layer: A LoRA layer of any kind that glora supports, with A of shape (r, d_in) and B of shape (d_out, r).
        rank: The new rank, from 0 to min(d_in, d_out). 0 takes the adapter out of this layer: what is left computes what
            the base layer computes.
        optimizer: The optimiser that holds A and B. The new factors take their places and, for kept columns, their state;
            see glora.lora.optimizer_state for what new columns start with.
        adapter_name: The adapter to resize; others of the same layer stay as they are.
        keep: Which columns stay when the rank shrinks: "norm" the largest ‖A_i‖·‖B_i‖, "svd" the best approximation of
            B·A, "first" the first ones.
        init_lora_weights: How new rows of A are drawn: "gaussian" as PEFT's option of that name, N(0, 1/rank²); anything
            else as LoRA's default, uniform in ±1/√d_in. (An embedding's new columns of B are N(0, 1), as PEFT's.)
        generator: A CPU generator to draw with; None uses torch's global one.
        scaling: The layer's scaling s afterwards; B is rescaled so that the update s·B·A is what it was. Default: held.

    Raises:
        ValueError: the rank is out of range, `keep` is unknown, `scaling` is not above 0 or would have to rescale a lora_bias,
            the layer does not carry the adapter or is of a kind that is not supported, or the optimiser's state cannot be
            carried over. The layer is then as it was.
    """
    name = type(layer.get_base_layer()).__name__
    if not has_adapter(layer, adapter_name):
        raise ValueError(f"this LoRA layer on {name} has no adapter {adapter_name!r}; it has {sorted(layer.lora_A)}")
    check_layer(name, layer, adapter_name)
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r} is unknown; choose one of {', '.join(map(repr, KEEP))}")
    largest, (smallest, why) = min(dimensions(layer, adapter_name)), min_supported_rank(layer, adapter_name)
    if isinstance(rank, bool) or not isinstance(rank, int) or not smallest <= rank <= largest:
        because = f" ({why} does not allow 0)" if smallest else ""
        raise ValueError(f"rank={rank!r} must be an integer from {smallest} to min(d_in, d_out) = {largest}{because}")
    E = experts(layer)
    if keep == "svd" and E > 1:
        raise ValueError(f'keep="svd" is for one matrix, and this adapter updates {E} experts; use keep="norm"')
    if scaling is not None and not (math.isfinite(scaling) and scaling > 0):
        raise ValueError(f"scaling={scaling!r} must be a finite number above 0, or None to hold it")
    if scaling is not None and layer.lora_bias.get(adapter_name):
        raise ValueError("with lora_bias the scaling multiplies a bias as well, so it can only be held: scaling=None")
    A, B = factors(layer, adapter_name)
    if optimizer is not None:
        check_optimizer(optimizer, (A, B))
    old_rank, old_scaling = A.shape[0] // E, layer.scaling[adapter_name]
    if rank == old_rank and scaling in (None, old_scaling):
        return
    if rank == 0:
        if optimizer is not None:
            replace_parameter(optimizer, A, None)
            replace_parameter(optimizer, B, None)
        remove_adapter(layer, adapter_name)
        return

    with torch.no_grad():
        draw = _columns(layer, adapter_name, rank, init_lora_weights, generator)
        plan = _plan(by_rank_A(A.detach(), E, old_rank), by_rank_B(B.detach(), E, old_rank), rank, keep, draw)
        c = 1.0 if scaling is None else old_scaling / scaling
        c_A, c_B = (1.0, c) if random_factor(layer, adapter_name) == "A" else (c, 1.0)
        new_A = nn.Parameter(c_A * plan.A.reshape(E * rank, *A.shape[1:]), requires_grad=A.requires_grad)
        new_B = nn.Parameter(c_B * plan.B.reshape(B.shape[0], rank * E, *B.shape[2:]), requires_grad=B.requires_grad)
        if optimizer is not None:
            replace_parameter(optimizer, A, new_A, _carry(plan.of_A, new_A, 0, E, old_rank, c_A))
            replace_parameter(optimizer, B, new_B, _carry(plan.of_B, new_B, 1, E, old_rank, c_B))
    set_factors(layer, adapter_name, new_A, new_B)

    power = 0.5 if layer.use_rslora.get(adapter_name) else 1
    if scaling is not None:
        alpha = scaling * rank**power
        layer.scaling[adapter_name] = scaling
    elif old_rank == 0:
        alpha = layer.scaling[adapter_name] * rank**power
    elif power == 1:
        alpha = layer.lora_alpha[adapter_name] * rank / old_rank
    else:
        alpha = layer.lora_alpha[adapter_name] * math.sqrt(rank / old_rank)
    layer.r[adapter_name] = rank
    layer.lora_alpha[adapter_name] = int(alpha) if float(alpha).is_integer() else alpha


_Draw = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


def _columns(
    layer: LoraLayer,
    adapter_name: str,
    rank: int,
    init_lora_weights: bool | str,
    generator: torch.Generator | None,
) -> _Draw:
    """What draws new columns: (count) -> A (E, count, d_in), B (d_out, count, E)."""
    A, B = factors(layer, adapter_name)
    E, (d_out, d_in) = experts(layer), dimensions(layer, adapter_name)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        # On the CPU and in float32, so that every device and dtype gets the same numbers.
        new_A, new_B = torch.zeros(E, count, d_in), torch.zeros(d_out, count, E)
        if random_factor(layer, adapter_name) == "B":
            new_B.normal_(generator=generator)
        elif init_lora_weights == "gaussian":
            new_A.normal_(std=1 / rank, generator=generator)
        else:
            new_A.uniform_(-1 / math.sqrt(d_in), 1 / math.sqrt(d_in), generator=generator)
        return new_A.to(A), new_B.to(B)

    return draw


@dataclass(frozen=True)
class _Plan:
    """The new factors, and how what the optimiser keeps for each rank follows.

    `of_A` and `of_B` lead from the old ranks to the kept ones: an index of shape (kept,), or a matrix of shape (kept, r) that
    a gradient of the factor is multiplied by. The ranks that follow up to the new one are new.
    """

    A: torch.Tensor
    B: torch.Tensor
    of_A: torch.Tensor
    of_B: torch.Tensor


def _plan(A: torch.Tensor, B: torch.Tensor, rank: int, keep: Keep, draw: _Draw) -> _Plan:
    """From A (E, r, d_in) and B (d_out, r, E)."""
    old_rank = A.shape[1]
    if rank < old_rank and keep == "svd":
        kept_A, kept_B, of_A, of_B = _best_approximation(A[0], B[:, :, 0], rank)
        kept_A, kept_B = kept_A[None], kept_B[:, :, None]
    else:
        if rank < old_rank and keep == "norm":
            # of all experts together: they share the rank, and Σ_e ‖A_ei‖²·‖B_ei‖² is the size of column i in the whole stack
            size = (A.float().square().sum(2).T * B.float().square().sum(0)).sum(1)
            # Stable, so that equal columns are told apart by their place; sorted, so that the kept ones stay in order.
            index = torch.sort(size, descending=True, stable=True).indices[:rank].sort().values
        else:
            index = torch.arange(min(rank, old_rank), device=A.device)
        kept_A, kept_B, of_A, of_B = A[:, index], B[:, index], index, index
    if born := rank - kept_A.shape[1]:
        new_A, new_B = draw(born)
        kept_A, kept_B = torch.cat([kept_A, new_A], dim=1), torch.cat([kept_B, new_B], dim=1)
    return _Plan(kept_A, kept_B, of_A, of_B)


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
    smallest = S[0] * torch.finfo(S.dtype).eps * max(A.shape[1], B.shape[0])
    real = int((S[:rank] > smallest).sum())
    root = S[:real].sqrt()
    left, right = U[:, :real] * root, root[:, None] * Vh[:real]
    T_B = torch.linalg.pinv(R_B) @ left  # (r, kept)
    T_A = right @ torch.linalg.pinv(R_A).T  # (kept, r)
    return (right @ Q_A.T).to(A.dtype), (Q_B @ left).to(B.dtype), T_B.T, T_A


def _carry(kept: torch.Tensor, successor: nn.Parameter, dim: int, E: int, old_rank: int, c: float) -> Carry:
    """How a state of a factor, whose ranks lie along dimension `dim` as PEFT stores it, follows it to the new rank.

    The factor itself has been multiplied by c.
    """
    by_rank = by_rank_A if dim == 0 else by_rank_B
    rank = successor.shape[dim] // E
    mixed = kept.dim() == 2

    def carry(key: str, state: torch.Tensor) -> torch.Tensor:
        kind = STATE_KINDS[key]
        if c != 1:
            state = state * c ** -POWERS_OF_THE_GRADIENT[key]
        if key in MEAN_OVER and MEAN_OVER[key] % successor.dim() == dim:
            return state
        own = successor.detach().to(state.dtype)
        if kind == "average" and mixed:
            return own.clone()
        old = by_rank(state, E, old_rank)
        if mixed:
            # Of a sum Σ t_i·g_i of gradients, the mean square is Σ t_i²·v_i where they are uncorrelated.
            weight = kept.to(state.dtype) if kind == "first moment" else kept.to(state.dtype).square()
            follow = torch.einsum("kr,arb->akb", weight, old)
        else:
            follow = old.index_select(1, kept)
        if born := rank - follow.shape[1]:
            if kind == "first moment":
                new = torch.zeros_like(old[:, :1])
            elif kind == "average":
                new = by_rank(own, E, rank)[:, follow.shape[1] :]
            else:
                new = (follow if follow.shape[1] else old).mean(1, keepdim=True)
            follow = torch.cat([follow, new.expand(-1, born, -1)], dim=1)
        # The state is as long along the ranks as the factor; a mean over the other dimension may have dropped that one.
        place = min(dim, state.dim() - 1)
        return follow.reshape([E * rank if i == place else n for i, n in enumerate(state.shape)]).contiguous()

    return carry
