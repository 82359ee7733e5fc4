"""A linear layer and its LoRA branch as one step of back-propagation.

    forward    h = x·Aᵀ             y  = x·Wᵀ + b, then  y  += s·h·Bᵀ
    backward   ∂h = ∂y·B            ∂x = ∂y·W,     then  ∂x += s·∂h·A
               ∂A = s·∂hᵀ·x         ∂B = s·∂yᵀ·h

Written with PyTorch's own operations, as PEFT does, the branch costs far more than its arithmetic: s·h·Bᵀ and its gradient are
full activations that are made, scaled and added in passes of their own, and two of the six thin products run several times
slower in the layout that autograd gives them. Here both sums are joins by addmm into the base layer's product, s rides
along as its alpha, and the products have the rank first, (r, T) and not (T, r): the layout in which they are fast on a CPU
(docs/cost.md has the measurements). Which library multiplies is glora.acceleration.products's part.

Between the passes x, W, A, B and h are kept, and the mask of dropout. The dropped input is made again, so matrices that share
an input keep it once, and nothing as large as an activation is kept that PEFT does not keep.
"""

from __future__ import annotations

from typing import Any

import torch

from glora.acceleration.products import product, scaled_product


def fused_lora(
    x: torch.Tensor,
    W: torch.Tensor,
    b: torch.Tensor | None,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """x·Wᵀ + b + s·D(x)·Aᵀ·Bᵀ, where D is dropout, with gradients for x, b, A and B.

    Casts are PEFT's: under autocast everything is computed in its dtype; otherwise the branch is computed in that of A and the
    sum is rounded to that of x·Wᵀ. The random numbers of dropout are those that nn.Dropout would draw.

    Args:
        x: Shape (..., d_in), in float32, bfloat16 or float16.
        W: Shape (d_out, d_in), in x's dtype unless autocast is on; gets no gradient.
        b: Shape (d_out,), or None.
        A: Shape (r, d_in).
        B: Shape (d_out, r), in A's dtype.
        scaling: s.
        dropout: The share of x's elements that the branch does not see, below 1; 0 when not training.

    Returns:
        Shape (..., d_out).
    """
    if torch.is_autocast_enabled(x.device.type):
        # each cast is a step of back-propagation of its own, which brings the gradients back to the dtype they came from
        dtype = torch.get_autocast_dtype(x.device.type)
        x, W, A, B = x.to(dtype), W.to(dtype), A.to(dtype), B.to(dtype)
        b = None if b is None else b.to(dtype)
    if torch.is_grad_enabled() and (x.requires_grad or A.requires_grad or B.requires_grad or _trained(b)):
        joined: torch.Tensor = _FusedLora.apply(x, W, b, A, B, scaling, dropout)  # type: ignore[no-untyped-call]
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
    ) -> torch.Tensor:
        y, h, mask = _forward(x, W, b, A, B, scaling, dropout)
        of_x, _, _, of_A, of_B, *_ = ctx.needs_input_grad
        kept = x.to(A.dtype) if A.itemsize < x.itemsize else x  # whichever is smaller
        ctx.save_for_backward(
            kept if of_A else None, W if of_x else None, A if of_x or of_A else None, B, h if of_B else None, mask
        )
        ctx.scaling, ctx.dropout, ctx.shape = scaling, dropout, x.shape
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a model under accelerate_lora has no second derivative: its backward pass cannot itself be differentiated "
                "(create_graph=True). Call undo() on what accelerate_lora returned, and PEFT's own forward pass is back"
            )
        if torch.is_autocast_enabled(gradient.device.type):  # backward() was called within it; the dtypes are settled
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
    """y; h as (r, T); and the mask of dropout."""
    seen, mask = x.to(A.dtype), None
    if dropout:
        seen, mask = _drop(seen, dropout)
    h = product(A, _rows(seen))
    y = product(x, W, b)  # just before it is added to, while a cache still has it
    if y.dtype == A.dtype:
        y.view(-1, y.shape[-1]).addmm_(h.t(), B.t(), alpha=scaling)
    else:
        y.view(-1, y.shape[-1]).add_(torch.mm(h.t(), B.t()), alpha=scaling)
    return y, h, mask


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, W, A, B, h, mask = ctx.saved_tensors
    s = ctx.scaling
    of_x, _, of_b, of_A, of_B, *_ = ctx.needs_input_grad
    gradient = _rows(gradient)
    g = gradient.to(B.dtype)
    of_input = of_bias = of_down = of_up = None
    g_h = product(B.t(), g)  # (r, T)
    if of_B:
        of_up = scaled_product(g.t(), h, s) if g.is_cuda else scaled_product(h, g.t(), s).t()
    if of_x:
        of_input = product(gradient, W.t())
        if mask is None and A.dtype == W.dtype:
            of_input.addmm_(g_h.t(), A, alpha=s)
            of_input = of_input.view(ctx.shape)
        else:
            of_input = of_input.view(ctx.shape)
            branch = torch.mm(g_h.t(), A).view(ctx.shape)
            if mask is not None:
                branch = _drop_again(branch, mask, ctx.dropout)
            of_input.add_(branch, alpha=s)
    if of_A:
        seen = x.to(A.dtype)
        if mask is not None:
            seen = _drop_again(seen, mask, ctx.dropout)
        of_down = scaled_product(g_h, _rows(seen).t(), s)
    if of_b:
        of_bias = gradient.sum(0)
    return of_input, None, of_bias, of_down, of_up, None, None


def _drop(x: torch.Tensor, p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What nn.Dropout does and draws; and the mask: of bytes on a GPU, on a CPU already scaled, which is much faster there."""
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
    """All leading dimensions as one, (T, d)."""
    return x.reshape(-1, x.shape[-1])


def _trained(b: torch.Tensor | None) -> bool:
    return b is not None and b.requires_grad
