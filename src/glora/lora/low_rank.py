"""Products B·A of thin factors: their singular values, and their best approximation of a lower rank. Tensors only.

With the QR decompositions B = Q_B·R_B and Aᵀ = Q_A·R_A,

    B·A = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ     and     R_B·R_Aᵀ = U·S·Vᵀ  (r × r),

so that S are the singular values of B·A. By Eckart and Young (1936) its best approximation in r' directions keeps the
largest of them, and its error is exactly the others. No d_out × d_in matrix is made, and neither are Q_A and Q_B: the new
factors mix the old columns,

    B' = B·T_B,  T_B = R_Aᵀ·V·S^(-1/2)     and     A' = T_A·A,  T_A = S^(-1/2)·Uᵀ·R_B.

Everything works on a stack of n products at once, in float32: A is (n, r, d_in) and B is (n, d_out, r).
"""

from __future__ import annotations

import torch


def singular_values(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Return σ_1 ≥ ... ≥ σ_r of each B·A, shape (n, r); 0 for those that rounding alone has made."""
    values = torch.linalg.svdvals(_core(*_triangles(A, B)))
    values = torch.where(_smallest(values, A, B) < values, values, 0.0)
    return torch.nn.functional.pad(values, (0, A.shape[1] - values.shape[1]))


def leading_directions(A: torch.Tensor, B: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T_A (n, r', r) and T_B (n, r, r') of the best approximation B·T_B·T_A·A in at most `rank` directions.

    Directions without a singular value in any of the products are left out: both columns would be zero there, and such a column
    never learns.
    """
    R_A, R_B = _triangles(A, B)
    U, S, Vh = torch.linalg.svd(_core(R_A, R_B), full_matrices=False)
    smallest = _smallest(S, A, B)
    real = int((smallest < S[:, :rank]).any(0).sum())
    # 1/√S, and 0 where another product of the stack has a direction and this one does not
    root = torch.where(smallest < S, S, torch.inf)[:, :real].rsqrt()
    T_A = root[:, :, None] * (U[:, :, :real].transpose(1, 2) @ R_B)
    T_B = (R_A.transpose(1, 2) @ Vh[:, :real].transpose(1, 2)) * root[:, None]
    return T_A, T_B


def _smallest(S: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Return the size below which a singular value is rounding, shape (n, 1)."""
    return S[:, :1] * torch.finfo(S.dtype).eps * max(A.shape[2], B.shape[1])


def _triangles(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    R_A = torch.linalg.qr(A.float().transpose(1, 2), mode="r").R
    return R_A, torch.linalg.qr(B.float(), mode="r").R


def _core(R_A: torch.Tensor, R_B: torch.Tensor) -> torch.Tensor:
    return R_B @ R_A.transpose(1, 2)
