"""From norms to scores: each rule against a case computed by hand, and what a second reallocation may do."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocationConfig, RankAllocator
from glora.lora.adapter import RankedAdapter
from glora.scoring.scores import shares
from unit.test_allocator import config, lora, sgd, train

NORMS = {"first": 4.0, "second": 9.0}


def adapter() -> RankedAdapter:
    found = RankedAdapter(lora())  # first: 6 -> 12, second: 12 -> 12
    with torch.no_grad():
        found.layers["first"].base_layer.weight.fill_(1.0)
        found.layers["second"].base_layer.weight.fill_(0.25)
    return found


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ({}, 4.0, 9.0),
        ({"exponent": 0.5}, 2.0, 3.0),
        ({"exponent": 2.0}, 16.0, 81.0),
        ({"exponent": 0}, 1.0, 1.0),
        ({"relative_to": "size"}, 4 / 72**0.5, 9 / 12),
        ({"relative_to": "weight"}, 4 / 72**0.5, 9 / (0.25 * 12)),
        ({"relative_to": "weight", "exponent": 2.0}, 16 / 72, 9.0),
    ],
)
def test_by_hand(fields: dict, first: float, second: float) -> None:
    found = adapter()
    share = shares(NORMS, found.layers, found.shapes, **fields)
    assert share["first"] / share["second"] == pytest.approx(first / second)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_no_power_is_too_large_or_too_small_for_a_float(scale: float) -> None:
    found = adapter()
    share = shares({name: scale * norm for name, norm in NORMS.items()}, found.layers, found.shapes, exponent=300)
    assert share == {"first": pytest.approx((4 / 9) ** 300), "second": 1.0}


def test_a_matrix_without_a_gradient_has_no_score_whatever_the_exponent() -> None:
    found = adapter()
    assert shares({"first": 0.0, "second": 2.0}, found.layers, found.shapes, exponent=0)["first"] == 0


def test_a_weight_of_zero_is_refused() -> None:
    found = adapter()
    nn.init.zeros_(found.layers["second"].base_layer.weight)
    with pytest.raises(ValueError, match="second: the frozen weight is all zero"):
        shares(NORMS, found.layers, found.shapes, relative_to="weight")
    model = lora()
    nn.init.zeros_(model.base_model.model.second.base_layer.weight)
    with pytest.raises(ValueError, match="second: the frozen weight is all zero"):
        RankAllocator(model, sgd(model), config(relative_to="weight"))


def test_embeddings_convolutions_and_transposed_weights_have_a_norm() -> None:
    from transformers.pytorch_utils import Conv1D

    base = nn.ModuleDict({"e": nn.Embedding(5, 4), "c": nn.Conv2d(2, 3, 2), "t": Conv1D(6, 4)})
    model = get_peft_model(base, LoraConfig(r=1, target_modules=["e", "c", "t"], fan_in_fan_out=True))
    found = RankedAdapter(model)
    ones = dict.fromkeys(found.layers, 1.0)
    share = shares(ones, found.layers, found.shapes, relative_to="weight")
    assert {name: 1 / value for name, value in share.items()} == pytest.approx(
        {name: base[name].get_base_layer().weight.norm().item() for name in "ect"}
    )


def test_the_scores_are_those_that_are_allocated_by() -> None:
    model = lora()
    optimizer = sgd(model)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=9, score_exponent=2.0, max_rank=6))
    plain = RankAllocator(model, optimizer, config(warmup_steps=9))
    for seed in range(3):
        model(torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        allocator.step()
        plain.step()
        optimizer.step()
        optimizer.zero_grad()
    a, b = plain.scores.values()
    assert allocator.scores == pytest.approx({"first": a * a / (a * a + b * b), "second": b * b / (a * a + b * b)})
    ranks = allocator.allocate()
    larger = max(ranks, key=ranks.__getitem__)
    assert ranks[larger] >= plain.allocate()[larger]


def test_no_more_reallocations_than_asked_for() -> None:
    model = lora()
    optimizer = sgd(model)
    fields = dict(warmup_steps=2, reallocate_every=2, max_reallocations=2, min_rank=1)
    allocator = RankAllocator(model, optimizer, config(**fields))
    train(model, optimizer, allocator, 4)
    assert allocator.reallocation.step == 4
    assert not allocator.recording, "nothing is read after the last"
    train(model, optimizer, allocator, 4)
    assert allocator.reallocation.step == 4


def test_faults_are_reported_together() -> None:
    with pytest.raises(ValueError, match="score_exponent=-1") as error:
        RankAllocationConfig(
            score_exponent=-1, score="size", relative_to="height", max_reallocations=2, rank_scaling="free"
        )
    for fault in (
        "score='size'",
        "relative_to='height'",
        "max_reallocations=2 must be an int ≥ 1 together",
        "rank_scaling='free'",
    ):
        assert fault in str(error.value)
