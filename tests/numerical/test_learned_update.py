"""The singular values of what has been learned, against those of PEFT's own Δ, for every kind of layer."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from peft.tuners.lora.layer import ParamWrapper

from glora import RankAllocator
from glora.lora.matrix import dimensions, experts, factors
from glora.scoring.spectrum import last_singular_values, singular_values
from numerical.test_kinds_of_layers import RANK, kinds, trained
from unit.test_allocator import config, lora, train


@kinds
def test_against_peft(kind: str) -> None:
    _, layers = trained(kind)
    for name, layer in layers.items():
        layer.scaling["default"] = 1.5
        delta = layer.get_delta_weight("default").detach()
        if isinstance(layer, ParamWrapper):
            E, shape = experts(layer), dimensions(layer, "default")
            matrices = delta if delta.shape[0] == E else delta.movedim(-1, 0)
            assert sorted(matrices.shape[1:]) == sorted(shape)
            expected = torch.linalg.svdvals(matrices)[:, :RANK].square().sum(0).sqrt()
        else:
            expected = torch.linalg.svdvals(delta.flatten(1))[:RANK]
        torch.testing.assert_close(singular_values(layer, "default"), expected, rtol=1e-4, atol=1e-5)
        assert last_singular_values(layers, "default")[name] == pytest.approx(expected[-1].item(), rel=1e-4)


def planted(last: dict[str, float]) -> tuple[torch.nn.Module, RankAllocator]:
    """An adapter of rank 4 whose updates have the singular values 3, 2, 1 and the one given."""
    model = lora(r=4, lora_alpha=4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=1, score="last_singular_value"))
    for name, layer in allocator.adapter.layers.items():
        A, B = factors(layer, "default")
        with torch.no_grad():
            left, right = (torch.linalg.qr(torch.randn(n, 4))[0] for n in (B.shape[0], A.shape[1]))
            A.copy_(right.T)
            B.copy_(left * torch.tensor([3.0, 2.0, 1.0, last[name]]))
    return model, allocator


def test_ranks_go_where_the_last_direction_is_in_use() -> None:
    """By hand: scores 0.9 and 0.3 share 8 ranks as 6 and 2, whatever the gradients are."""
    model, allocator = planted({"first": 0.3, "second": 0.9})
    assert allocator.scores == pytest.approx({"first": 0.25, "second": 0.75}, rel=1e-4)
    train(model, allocator._optimizer, allocator, 1)
    assert allocator.ranks == {"first": 2, "second": 6}
    assert all(allocator.norms.values()), "norms are averaged all the same"
    assert json.loads(json.dumps(allocator.state_dict()))["config"]["score"] == "last_singular_value"


def test_no_last_direction_anywhere_leaves_plain_lora(caplog: pytest.LogCaptureFixture) -> None:
    model, allocator = planted({"first": 0.0, "second": 0.0})
    with torch.no_grad():
        for layer in allocator.adapter.layers.values():
            factors(layer, "default")[1][:, 3] = 0
            factors(layer, "default")[0][3] = 0
    with caplog.at_level(logging.WARNING, logger="glora"):
        train(model, allocator._optimizer, allocator, 1)
    assert not allocator.allocated
    assert allocator.ranks == {"first": 4, "second": 4}
    assert "all scores are zero with score='last_singular_value'" in caplog.text


def test_a_rank_beyond_the_matrix_has_no_last_direction() -> None:
    _, allocator = planted({"first": 0.5, "second": 0.5})
    layer = allocator.adapter.layers["first"]  # 6 -> 12
    allocator.adapter.set_ranks({"first": 6, "second": 4})
    assert singular_values(layer, "default").shape == (6,)
    assert singular_values(layer, "default")[-1] < 1e-5
