"""A scaling that falls with the rank: the function stays, the optimiser's state follows, and stock PEFT computes the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from glora import RankAllocationConfig, RankAllocator, resize_lora_layer
from glora.lora.adapter import RankedAdapter
from glora.lora.optimizer_state import POWERS_OF_THE_GRADIENT, STATE_KINDS
from numerical.test_optimizer_state import OPTIMIZERS, factors, give_gradients, make, trained
from numerical.test_resize import D_IN, lora_model


def test_every_state_has_a_power() -> None:
    assert POWERS_OF_THE_GRADIENT.keys() == STATE_KINDS.keys()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [4, 7])
def test_another_scaling_changes_no_output_and_is_what_peft_computes(rslora: bool, rank: int) -> None:
    model, layer = lora_model(use_rslora=rslora)
    x = torch.randn(3, D_IN)
    before, b = model(x), layer.lora_B["default"].weight.detach().clone()
    scaling = layer.scaling["default"] / 4
    resize_lora_layer(layer, rank, scaling=scaling)
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(layer.lora_B["default"].weight[:, :4], 4 * b)
    layer.set_scale("default", 1)  # PEFT's own, from alpha and r
    assert layer.scaling["default"] == pytest.approx(scaling, rel=1e-12)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_state_is_that_of_an_optimiser_that_always_had_the_smaller_gradients(name: str) -> None:
    """With c = s/s', B' = c·B has seen gradients of 1/c the size; a power of two, so that every number is exact."""
    layer, optimizer = trained(name)
    resize_lora_layer(layer, 4, optimizer=optimizer, scaling=layer.scaling["default"] / 4)
    _, twin = lora_model()
    A, B = factors(twin)
    with torch.no_grad():
        B.mul_(4)
    twin_optimizer = make(name, [A, B])
    for seed in range(20):
        give_gradients(twin, seed)
        B.grad /= 4
        twin_optimizer.step()
    step_like = {
        key for key, power in POWERS_OF_THE_GRADIENT.items() if power <= 0
    }  # those of another history of weights
    for mine, other in zip(factors(layer), (A, B)):
        for key, value in optimizer.state[mine].items():
            if isinstance(value, torch.Tensor) and value.dim() and key not in step_like:
                # Adafactor's means hold its eps
                torch.testing.assert_close(value, twin_optimizer.state[other][key], rtol=2e-2, atol=1e-5, msg=key)


def test_adam_moments_by_hand() -> None:
    layer, optimizer = trained("Adam")
    A, B = factors(layer)
    of_A, of_B = (copy.deepcopy(optimizer.state[p]) for p in (A, B))
    resize_lora_layer(layer, 2, optimizer=optimizer, keep="first", scaling=layer.scaling["default"] * 2)
    new_A, new_B = factors(layer)
    assert torch.equal(new_B, B[:, :2] / 2)
    assert torch.equal(optimizer.state[new_B]["exp_avg"], of_B["exp_avg"][:, :2] * 2)
    assert torch.equal(optimizer.state[new_B]["exp_avg_sq"], of_B["exp_avg_sq"][:, :2] * 4)
    assert torch.equal(new_A, A[:2])
    assert torch.equal(optimizer.state[new_A]["exp_avg"], of_A["exp_avg"][:2])
    assert torch.equal(optimizer.state[new_A]["exp_avg_sq"], of_A["exp_avg_sq"][:2])


def test_an_embedding_is_the_other_way_round() -> None:
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Embedding(9, 6)), LoraConfig(r=2, target_modules=["0"]))
    layer = RankedAdapter(model).layers["0"]
    with torch.no_grad():
        layer.lora_embedding_A["default"].normal_()
    tokens = torch.arange(9)
    before, drawn = model(tokens), layer.lora_embedding_B["default"].detach().clone()
    resize_lora_layer(layer, 3, scaling=layer.scaling["default"] / 2)
    torch.testing.assert_close(model(tokens), before)
    assert torch.equal(layer.lora_embedding_B["default"][:, :2], drawn), "the factor that was drawn stays as drawn"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def lora(**fields: object) -> nn.Module:
    torch.manual_seed(0)
    settings = dict(r=4, lora_alpha=8, target_modules=["first", "second", "third"]) | fields
    model = get_peft_model(Net(), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


@pytest.mark.parametrize(("rule", "power"), [("held", 0), ("inverse_sqrt", 0.5), ("inverse", 1)])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_rule_depends_on_the_rank_alone(rule: str, power: float, rslora: bool) -> None:
    """Over 0 and back: s = s_0·(r_0/r)^p, whatever lay between."""
    model = lora(use_rslora=rslora)
    adapter = RankedAdapter(model)
    adapter.rank_scaling = rule
    start = {name: layer.scaling["default"] for name, layer in adapter.layers.items()}
    for ranks in ((2, 6, 4), (8, 0, 1), (1, 3, 8)):
        adapter.set_ranks(dict(zip(adapter.layers, ranks)))
        for (name, layer), rank in zip(adapter.layers.items(), ranks):
            if rank:
                assert layer.scaling["default"] == pytest.approx(start[name] * (4 / rank) ** power, rel=1e-12), name


@pytest.mark.parametrize("rule", ["inverse_sqrt", "inverse"])
def test_reallocation_keeps_the_function_and_stock_peft_loads_what_is_saved(rule: str, tmp_path: Path) -> None:
    model, x = lora(), torch.randn(16, 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    config = RankAllocationConfig(warmup_steps=3, min_rank=4, max_rank=8, total_rank=17, rank_scaling=rule)
    allocator = RankAllocator(model, optimizer, config)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        allocator.step()
        with torch.no_grad():
            before = {k: v.clone() for k, v in model.named_parameters() if "lora" in k}
        optimizer.step()
    assert allocator.allocated
    assert max(allocator.ranks.values()) > 4, "the case must have a rank that grows"
    assert before
    scalings = {layer.scaling["default"] for layer in allocator.adapter.layers.values()}
    assert len(scalings) > 1
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    stock = PeftModel.from_pretrained(Net(), tmp_path)
    torch.testing.assert_close(stock(x), model(x))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(set(saved["alpha_pattern"].values()) | {saved["lora_alpha"]}) >= 1

    resumed = lora()
    late = RankAllocator(resumed, torch.optim.AdamW(resumed.parameters()), config)
    late.load_state_dict(json.loads(json.dumps(allocator.state_dict())))
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(x), model(x)), "a resumed run has the same scalings"


def test_what_cannot_be_rescaled_is_refused_at_once() -> None:
    model = lora(lora_bias=True)
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="rank_scaling='inverse' rescales B, and lora_bias would have to follow"):
        RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=2, rank_scaling="inverse"))
    _, layer = lora_model()
    with pytest.raises(ValueError, match="scaling=0 must be a finite number above 0"):
        resize_lora_layer(layer, 2, scaling=0)
