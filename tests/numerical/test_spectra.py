"""Spectra of what has been learned, against PEFT's own Δ, for every kind of layer."""

from __future__ import annotations

import pytest
import torch

from glora.lora.matrix import LoraMatrix
from glora.scoring.spectrum import spectra
from numerical.test_kinds_of_layers import RANK, kinds, matrices_of, of_rank, trained


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
