"""x·Wᵀ by the faster of the two libraries that PyTorch has for it on a CPU.

PyTorch multiplies float32 matrices with Intel's MKL, and those of bfloat16 with oneDNN. On a processor that is not Intel's, MKL
leaves AVX-512 unused; oneDNN uses it, and is faster on AMD's (docs/cost.md has what that is of a step).
Both add float32 in float32, in another order. oneDNN copies W for neither of its layouts.

Which library it is follows from the processor, not from a trial, so that the same machine gives the same bits each time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

# Multiplications below which the call of oneDNN costs more than it saves: about 12 µs.
WORTH_IT = 1 << 20


def product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x·Wᵀ + b, for use where nothing is recorded for back-propagation.

    Args:
        x: Shape (..., d_in).
        W: Shape (d_out, d_in).
        b: Shape (d_out,), or None.

    Returns:
        Shape (..., d_out).
    """
    if _by_onednn(x, W):
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
        return y
    return F.linear(x, W, b)


def scaled_product(x: torch.Tensor, W: torch.Tensor, scale: float) -> torch.Tensor:
    """scale·x·Wᵀ for two matrices; where it can be, scaled as it is written."""
    if _by_onednn(x, W):
        return product(x, W).mul_(scale)
    return torch.addmm(x.new_empty(()), x, W.t(), beta=0, alpha=scale)  # with beta=0 nobody reads the first argument


@lru_cache
def onednn_is_faster() -> bool:
    """Whether this processor has AVX-512 and is AMD's. No, where PyTorch cannot tell or has not both libraries."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(both and found.get("avx512_f")) and str(found.get("cpu_name", "")).startswith("AMD")


def _by_onednn(x: torch.Tensor, W: torch.Tensor) -> bool:
    return (
        x.dtype == W.dtype == torch.float32
        and x.is_cpu
        and x.numel() * W.shape[0] >= WORTH_IT
        and onednn_is_faster()
        and bool(torch.backends.mkldnn.enabled)
        and x.dim() > 1
        and (
            W.is_contiguous() or W.t().is_contiguous()
        )  # an expanded gradient is neither, and oneDNN would not read it
    )
