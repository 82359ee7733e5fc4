"""Matrix products by the faster of the two libraries that PyTorch has on a CPU.

PyTorch multiplies float32 matrices with Intel's MKL and bfloat16 matrices with oneDNN. On processors of other vendors MKL does
not use AVX-512. oneDNN does, and is faster on AMD's (docs/cost.md has its part in a step). Both sum float32 in float32, in
different orders. oneDNN copies W for neither of its layouts.

The processor decides, not a trial, so the same machine always gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# With fewer multiplications than this, calling oneDNN costs more than it saves (about 12 µs).
MIN_MULTIPLICATIONS = 1 << 20


def product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """Return x·Wᵀ + b. It records nothing for back-propagation.

    Args:
        x: Shape (..., d_in).
        W: Shape (d_out, d_in).
        b: Shape (d_out,), or None.
    """
    if _use_onednn(x, W):
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
        return y
    return F.linear(x, W, b)


def scaled_product(x: torch.Tensor, W: torch.Tensor, scale: float) -> torch.Tensor:
    """Return scale·x·Wᵀ for two matrices, scaled by the product itself where the library can."""
    if _use_onednn(x, W):
        return product(x, W).mul_(scale)
    return torch.addmm(x.new_empty(()), x, W.t(), beta=0, alpha=scale)  # beta=0: the first argument is not read


def onednn_is_faster() -> bool:
    """Return whether this is an AMD processor with AVX-512, and PyTorch has both libraries."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(both and found.get("avx512_f")) and str(found.get("cpu_name", "")).startswith("AMD")


ONEDNN_IS_FASTER = onednn_is_faster()


def _use_onednn(x: torch.Tensor, W: torch.Tensor) -> bool:
    return (
        x.dtype == W.dtype == torch.float32
        and x.is_cpu
        and x.numel() * W.shape[0] >= MIN_MULTIPLICATIONS
        and ONEDNN_IS_FASTER
        and bool(torch.backends.mkldnn.enabled)
        and x.dim() > 1
        # oneDNN cannot read an expanded gradient, which is neither
        and (W.is_contiguous() or W.t().is_contiguous())
    )
