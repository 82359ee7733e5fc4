"""Products of thin factors at the edges of float32."""

from __future__ import annotations

import torch

from glora.lora.low_rank import best_approximation, singular_values


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
