"""The norms against a gradient derived by hand, without a gradient, and in half precision."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora.lora.discovery import find_matrices
from glora.scoring.gradient_norms import GradientNorms


class TwoLinears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(5, 7, bias=False)
        self.wide = nn.Linear(40, 7, bias=False)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.narrow(x) + self.wide(z)


def peft_model() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(TwoLinears(), LoraConfig(r=3, lora_alpha=6, target_modules=["narrow", "wide"]))


def test_against_a_gradient_derived_by_hand() -> None:
    """L = ½‖(W + s·B·A)x − t‖² has ∂L/∂Δ = (y − t)·xᵀ, so ∂L/∂B = s·(y − t)·(A·x)ᵀ."""
    model = peft_model()
    x, z, target = torch.randn(1, 5), torch.randn(1, 40), torch.randn(1, 7)
    y = model(x, z)
    (0.5 * (y - target).square().sum()).backward()

    _, matrices = find_matrices(model)
    error, scaling = (y - target).detach(), 6.0 / 3
    for k, (name, given) in enumerate((("narrow", x), ("wide", z))):
        A = matrices[name].A.detach()
        of_B = scaling * (error.norm() * (A @ given[0]).norm()).item()
        assert GradientNorms(matrices.values(), "lora_b").read()[k].item() == pytest.approx(of_B, rel=1e-5)
        corrected = of_B * math.sqrt(given.shape[1]) / (scaling * A.norm().item())
        assert GradientNorms(matrices.values(), "delta").read()[k].item() == pytest.approx(corrected, rel=1e-5)


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
