"""Norms of matrices without a gradient, and of gradients in half precision."""

from __future__ import annotations

import math

import pytest
import torch

from glora.lora.discovery import find_matrices
from glora.scoring.gradient_norms import GradientNorms
from numerical.test_gradient_norms import peft_model


def test_what_took_no_part_counts_as_zero_and_no_gradient_at_all_is_an_error() -> None:
    model = peft_model()
    _, matrices = find_matrices(model)
    norms = GradientNorms(matrices.values(), "delta")
    with pytest.raises(RuntimeError, match="after loss.backward"):
        norms.read()
    model(torch.randn(2, 5), torch.randn(2, 40)).sum().backward()
    matrices["wide"].B.grad = None
    narrow, wide = norms.read().tolist()
    assert narrow > 0
    assert wide == 0.0


def test_bfloat16_gradients_give_float32_norms() -> None:
    """√21 = 4.583; the nearest bfloat16 numbers are 4.5625 and 4.59375."""
    model = peft_model().to(torch.bfloat16)
    _, matrices = find_matrices(model)
    for matrix in matrices.values():
        matrix.B.grad = torch.ones_like(matrix.B)
    norms = GradientNorms(matrices.values(), "lora_b").read()
    assert norms.dtype == torch.float32
    assert norms.tolist() == pytest.approx([math.sqrt(7 * 3)] * 2, rel=1e-6)
