"""The singular values of what has been learned, against those of PEFT's own Δ, for every kind of layer."""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import ParamWrapper

from glora.lora.adapter import RankedAdapter
from glora.lora.matrix import LoraMatrix
from numerical.test_kinds_of_layers import RANK, kinds, trained
from unit.test_allocator import lora


@kinds
def test_singular_values_against_peft(kind: str) -> None:
    _, layers = trained(kind)
    for name, layer in layers.items():
        layer.scaling["default"] = 1.5
        matrix = LoraMatrix(name, layer)
        delta = layer.get_delta_weight("default").detach()
        if isinstance(layer, ParamWrapper):
            matrices = delta if delta.shape[0] == matrix.experts else delta.movedim(-1, 0)
            assert sorted(matrices.shape[1:]) == sorted(matrix.shape)
            expected = torch.linalg.svdvals(matrices)[:, :RANK].square().sum(0).sqrt()
        else:
            expected = torch.linalg.svdvals(delta.flatten(1))[:RANK]
        torch.testing.assert_close(matrix.singular_values(), expected, rtol=1e-4, atol=1e-5)


def test_a_rank_of_the_whole_matrix_has_as_many_singular_values() -> None:
    adapter = RankedAdapter(lora(r=4, lora_alpha=4))  # first: 6 -> 12
    adapter.set_ranks({"first": 6, "second": 4})
    values = adapter.matrices["first"].singular_values()
    assert values.shape == (6,)
    assert values[-1] < 1e-5
