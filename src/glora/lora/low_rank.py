"""Products B·A of thin factors: their singular values, and their best approximation of a lower rank. Tensors only.

With the QR decompositions B = Q_B·R_B and Aᵀ = Q_A·R_A,

    B·A = Q_B·(R_B·R_Aᵀ)·Q_Aᵀ     and     R_B·R_Aᵀ = U·S·Vᵀ  (r × r),

so that S are the singular values of B·A. By Eckart and Young (1936) its best approximation in r' directions keeps the
largest of them, and its error is exactly the others. No d_out × d_in matrix is made, and neither are Q_A and Q_B: the new
factors mix the old columns,

    B' = B·T_B,  T_B = R_Aᵀ·V·S^(-1/2)     and     A' = T_A·A,  T_A = S^(-1/2)·Uᵀ·R_B.

Everything works on a stack of n products at once: A is (n, r, d_in) and B is (n, d_out, r). The thin factors are decomposed in
float32. Products are in float64 (but on MPS, which has none), because autocast and TF32 would round those in float32.
"""

from __future__ import annotations

import torch

ROUNDING = 4
"""A singular value below this many eps·r·σ_1 is rounding: the errors of an r × r decomposition grow with r."""


def singular_values(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Return σ_1 ≥ ... ≥ σ_r of each B·A, shape (n, r); 0 for those that rounding alone has made."""
    R_A, R_B = _triangles(A, B)
    values = torch.linalg.svdvals(R_B @ R_A.transpose(1, 2))
    values = torch.where(values <= _smallest(values, A), 0.0, values)  # NaN stays
    return torch.nn.functional.pad(values, (0, A.shape[1] - values.shape[1])).float()


def best_approximation(
    A: torch.Tensor, B: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return A' (n, r', d_in), B' (n, d_out, r'), T_A (n, r', r) and T_B (n, r, r') for at most `rank` directions, in float32.

    Directions without a singular value in any of the products are left out: both columns would be zero there, and such a column
    never learns.
    """
    R_A, R_B = _triangles(A, B)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.transpose(1, 2), full_matrices=False)
    rounding = _smallest(S, A) >= S
    real = int((~rounding[:, :rank]).any(0).sum())
    # 1/√S, and 0 where another product of the stack has a direction and this one does not
    root = torch.where(rounding, torch.inf, S)[:, :real].rsqrt()
    T_A = root[:, :, None] * (U[:, :, :real].transpose(1, 2) @ R_B)
    T_B = (R_A.transpose(1, 2) @ Vh[:, :real].transpose(1, 2)) * root[:, None]
    return (T_A @ _exact(A)).float(), (_exact(B) @ T_B).float(), T_A.float(), T_B.float()


def _triangles(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    R_A = torch.linalg.qr(A.float().transpose(1, 2), mode="r").R
    return _exact(R_A), _exact(torch.linalg.qr(B.float(), mode="r").R)


def _exact(t: torch.Tensor) -> torch.Tensor:
    return t.float() if t.device.type == "mps" else t.double()


def _smallest(S: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Return the size below which a singular value is rounding, shape (n, 1)."""
    return S[:, :1] * (ROUNDING * torch.finfo(torch.float32).eps * A.shape[1])
