"""A linear layer and its LoRA branch as one step of back-propagation.

    forward    h = x·Aᵀ             y  = x·Wᵀ + b, then  y  += s·h·Bᵀ
    backward   ∂h = ∂y·B            ∂x = ∂y·W,     then  ∂x += s·∂h·A
               ∂A = s·∂hᵀ·x         ∂B = s·∂yᵀ·h

PEFT writes the branch with separate PyTorch operations, which cost far more than their arithmetic: s·h·Bᵀ and its gradient are
full activations that are made, scaled and added in three passes, and autograd's layout makes two of the six thin products
several times slower. Here addmm adds both into the base layer's product, with s as its alpha. The thin products have the rank
first, (r, T) instead of (T, r), the layout in which they are fast on a CPU (measurements: docs/cost.md).
glora.acceleration.products chooses the library.

The forward pass keeps x, W, A, B, h and the mask of dropout. The backward pass makes the dropped input again, so matrices that
share an input keep it once, and no activation is kept that PEFT does not keep.
"""

from __future__ import annotations

from typing import Any

import torch

from glora.acceleration.products import product, scaled_product
from glora.lora.factor_watch import FactorWatch


def fused_lora(
    x: torch.Tensor,
    W: torch.Tensor,
    b: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    watch: FactorWatch | None = None,
) -> torch.Tensor:
    """Return x·Wᵀ + b + s·D(x)·Aᵀ·Bᵀ, where D is dropout, with gradients for x, b, A and B.

    Dtypes follow PEFT: under autocast all products are computed in its dtype; otherwise the branch is computed in A's dtype and
    the sum is rounded to the dtype of x·Wᵀ. Dropout draws the same random numbers as nn.Dropout.

    Args:
        x: Shape (..., d_in), in float32, bfloat16 or float16.
        W: Shape (d_out, d_in), in x's dtype unless autocast is on; gets no gradient.
        b: Shape (d_out,), or None.
        A: Shape (r, d_in).
        B: Shape (d_out, r), in A's dtype.
        scaling: s.
        dropout: Dropout probability, below 1; 0 when not training.
        watch: Gets D(x), h and s·∂y in the backward pass.

    Returns:
        Shape (..., d_out).
    """
    if torch.is_autocast_enabled(x.device.type):
        # autograd records each cast, and returns the gradients in the original dtypes
        dtype = torch.get_autocast_dtype(x.device.type)
        x, W, A, B = x.to(dtype), W.to(dtype), A.to(dtype), B.to(dtype)
        b = None if b is None else b.to(dtype)
    if torch.is_grad_enabled() and (x.requires_grad or A.requires_grad or B.requires_grad or _trained(b)):
        joined: torch.Tensor = _FusedLora.apply(x, W, b, A, B, scaling, dropout, watch)  # type: ignore[no-untyped-call]
        return joined
    return _forward(x, W, b, A, B, scaling, dropout)[0]


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W: torch.Tensor,
        b: torch.Tensor | None,
        A: torch.Tensor,
        B: torch.Tensor,
        scaling: float,
        dropout: float,
        watch: FactorWatch | None,
    ) -> torch.Tensor:
        y, h, mask = _forward(x, W, b, A, B, scaling, dropout)
        for_x, _, _, for_A, for_B, *_ = ctx.needs_input_grad
        kept = x.to(A.dtype) if A.itemsize < x.itemsize else x  # the smaller one
        for_A, for_B = for_A or watch is not None, for_B or watch is not None
        ctx.save_for_backward(
            kept if for_A else None, W if for_x else None, A if for_x or for_A else None, B, h if for_B else None, mask
        )
        ctx.scaling, ctx.dropout, ctx.shape, ctx.watch = scaling, dropout, x.shape, watch
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True: accelerate_lora supports no second derivative; call undo() on what accelerate_lora returned"
            )
        if torch.is_autocast_enabled(gradient.device.type):  # backward() was called within it; no further casts
            with torch.autocast(gradient.device.type, enabled=False):
                return _backward(ctx, gradient)
        return _backward(ctx, gradient)


def _forward(
    x: torch.Tensor,
    W: torch.Tensor,
    b: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return y, h as (r, T), and the mask of dropout."""
    seen, mask = x.to(A.dtype), None
    if dropout:
        seen, mask = _drop(seen, dropout)
    h = product(A, _rows(seen))
    y = product(x, W, b)  # last, so that it is still in the cache when it is added to
    if y.dtype == A.dtype:
        y.view(-1, y.shape[-1]).addmm_(h.t(), B.t(), alpha=scaling)
    else:
        y.view(-1, y.shape[-1]).add_(torch.mm(h.t(), B.t()), alpha=scaling)
    return y, h, mask


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, W, A, B, h, mask = ctx.saved_tensors
    s = ctx.scaling
    for_x, _, for_b, for_A, for_B, *_ = ctx.needs_input_grad
    gradient = _rows(gradient)
    g = gradient.to(B.dtype)
    grad_x = grad_b = grad_A = grad_B = None
    g_h = product(B.t(), g)  # (r, T)
    if for_B:
        grad_B = scaled_product(g.t(), h, s) if g.is_cuda else scaled_product(h, g.t(), s).t()
    if for_x:
        grad_x = product(gradient, W.t())
        if mask is None and A.dtype == W.dtype:
            grad_x.addmm_(g_h.t(), A, alpha=s)
            grad_x = grad_x.view(ctx.shape)
        else:
            grad_x = grad_x.view(ctx.shape)
            branch = torch.mm(g_h.t(), A).view(ctx.shape)
            if mask is not None:
                branch = _drop_again(branch, mask, ctx.dropout)
            grad_x.add_(branch, alpha=s)
    if for_A or ctx.watch is not None:
        seen = x.to(A.dtype)
        if mask is not None:
            seen = _drop_again(seen, mask, ctx.dropout)
        seen = _rows(seen)
        if for_A:
            grad_A = scaled_product(g_h, seen.t(), s)
        if ctx.watch is not None and (prepared := ctx.watch.prepare(seen, h.t())) is not None:
            ctx.watch.add(g, prepared * s)  # as the hooks on B would see it, whose output is still to be scaled
    if for_b:
        grad_b = gradient.sum(0)
    return grad_x, None, grad_b, grad_A, grad_B, None, None, None


def _drop(x: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop as nn.Dropout does. The mask holds bytes on a GPU; on a CPU it is already scaled, which is much faster there."""
    if x.is_cuda:
        return torch.native_dropout(x, p, True)
    mask = torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
    return x * mask, mask


def _drop_again(x: torch.Tensor, mask: torch.Tensor, p: float) -> torch.Tensor:
    if mask.dtype is torch.bool:
        dropped: torch.Tensor = torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - p))
        return dropped
    return x * mask


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Return (T, d), with all leading dimensions joined."""
    return x.reshape(-1, x.shape[-1])


def _trained(b: torch.Tensor | None) -> bool:
    return b is not None and b.requires_grad
