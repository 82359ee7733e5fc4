"""Spectra of what has been learned, against PEFT's own Δ, for every kind of layer."""

from __future__ import annotations

import pytest
import torch

from glora.lora.adapter import RankedAdapter
from glora.lora.low_rank import best_approximation, singular_values
from glora.lora.matrix import LoraMatrix
from glora.scoring.spectrum import spectra
from numerical.test_kinds_of_layers import RANK, kinds, matrices_of, of_rank, trained
from unit.test_allocator import lora


@kinds
def test_spectra_against_peft(kind: str) -> None:
    _, layers = trained(kind)
    matrices = [LoraMatrix(name, layer) for name, layer in layers.items()]
    for number, matrix in enumerate(matrices):
        matrix.layer.scaling["default"] = 1.5 + number
    found = spectra(matrices)
    assert list(found) == list(layers)
    for matrix in matrices:
        delta = matrices_of(matrix.layer, matrix.name)
        expected = torch.linalg.svdvals(delta)[:, :RANK].square().sum(0).sqrt()
        torch.testing.assert_close(torch.tensor(found[matrix.name]), expected, rtol=1e-4, atol=1e-5)


@kinds
def test_spectra_do_not_depend_on_how_the_update_is_factored(kind: str) -> None:
    """(B·M)·(M⁻¹·A) is B·A."""
    _, layers = trained(kind)
    matrices = [LoraMatrix(name, layer) for name, layer in layers.items()]
    before = spectra(matrices)
    M = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(RANK)
    with torch.no_grad():
        for layer in layers.values():
            A, B = of_rank(layer)
            A.copy_(torch.linalg.inv(M) @ A)
            B.copy_(torch.einsum("dre,rk->dke", B, M))
    for name, values in spectra(matrices).items():
        assert values == pytest.approx(before[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_decomposed_in_float32(dtype: torch.dtype) -> None:
    adapter = RankedAdapter(lora(r=4, lora_alpha=4))
    with torch.no_grad():
        for factor in adapter.factors:
            factor.copy_(torch.randn_like(factor).to(dtype))
    exact = spectra(adapter.present)
    for factor in adapter.factors:
        factor.data = factor.data.to(dtype)
    assert spectra(adapter.present) == exact


def test_small_directions_of_a_very_wide_matrix_are_kept() -> None:
    """Rounding grows with the rank that is decomposed, not with the vocabulary."""
    values = torch.tensor([1.0, 0.01, 0.001, 0.0001])
    A = torch.linalg.qr(torch.randn(200_000, 4))[0].T * values[:, None]
    B = torch.linalg.qr(torch.randn(64, 4))[0]
    torch.testing.assert_close(singular_values(A[None], B[None])[0], values, rtol=1e-3, atol=1e-6)
    kept_A, kept_B, *_ = best_approximation(A[None], B[None], 3)
    assert kept_A.shape[1] == kept_B.shape[2] == 3


def test_autocast_does_not_round_the_products() -> None:
    A, B = torch.randn(1, 8, 100), torch.randn(1, 50, 8)
    exact = singular_values(A, B), best_approximation(A, B, 3)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(singular_values(A, B), exact[0])
        assert torch.equal(best_approximation(A, B, 3)[0], exact[1])


def test_factors_whose_product_overflows_float32() -> None:
    A, B = torch.full((1, 2, 3), 1e25), torch.full((1, 4, 2), 1e25)
    assert not torch.isfinite(singular_values(A, B)).all()


def test_a_rank_of_the_whole_matrix_has_as_many_singular_values() -> None:
    adapter = RankedAdapter(lora(r=4, lora_alpha=4))  # first: 6 -> 12
    adapter.set_ranks({"first": 6, "second": 4})
    values = spectra(adapter.present)["first"]
    assert len(values) == 6
    assert values[-1] < 1e-5
