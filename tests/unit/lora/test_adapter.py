"""Matrices that leave the model and come back: their place in the module tree, in the optimizer, and in what is loaded."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from glora.lora.adapter import RankedAdapter

NAMES = ("first", "second", "third")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            setattr(self, name, nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in NAMES:
            x = torch.tanh(getattr(self, name)(x))
        return x


def lora() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(Net(), LoraConfig(r=4, lora_alpha=8, target_modules=list(NAMES), lora_dropout=0.5))


def by_factor(model: nn.Module) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for name, p in named if factor in name]} for factor in ("lora_A", "lora_B")]
    return torch.optim.AdamW(groups)


def names_in(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    names = {p: name.removeprefix("base_model.model.") for name, p in model.named_parameters()}
    return [[names[p].split(".")[0] for p in group["params"]] for group in optimizer.param_groups]


@pytest.mark.parametrize("known", [True, False], ids=["removed from it", "younger than the removal"])
@pytest.mark.parametrize("gone", [("second",), ("first", "second"), ("first", "third")])
def test_back_into_the_same_places(gone: tuple[str, ...], known: bool) -> None:
    model = lora()
    adapter = RankedAdapter(model)
    optimizer = by_factor(model)
    there = names_in(model, optimizer)
    adapter.set_ranks({n: 0 if n in gone else 4 for n in NAMES}, optimizer=optimizer if known else None)
    if not known:
        optimizer = by_factor(model)
    assert all(name not in group for group in names_in(model, optimizer) for name in gone)
    adapter.set_ranks(dict.fromkeys(NAMES, 4), optimizer=optimizer)
    assert names_in(model, optimizer) == there
    assert len(optimizer.param_groups) == 2


def test_a_frozen_factor_stays_out_of_the_optimizer() -> None:
    model = lora()
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad = False
    adapter = RankedAdapter(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    adapter.set_ranks({"first": 4, "second": 0, "third": 4}, optimizer=optimizer)
    adapter.set_ranks(dict.fromkeys(NAMES, 4), optimizer=optimizer)
    assert names_in(model, optimizer) == [list(NAMES)]


def test_a_matrix_that_comes_back_has_the_mode_of_the_model() -> None:
    model = lora().train()
    adapter = RankedAdapter(model)
    adapter.set_ranks({"first": 4, "second": 0, "third": 4})
    model.eval()
    adapter.set_ranks(dict.fromkeys(NAMES, 4))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("gone", ["first", "third"])
def test_loading_brings_a_matrix_back_and_takes_another_out(gone: str) -> None:
    model, x = lora().eval(), torch.randn(3, 8)
    adapter = RankedAdapter(model)
    adapter.follow_loading()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    full, expected = copy.deepcopy(get_peft_model_state_dict(model)), model(x)

    adapter.set_ranks({n: 0 if n == gone else 6 for n in NAMES})
    partial, without = copy.deepcopy(get_peft_model_state_dict(model)), model(x)
    set_peft_model_state_dict(model, full)
    assert adapter.ranks == dict.fromkeys(NAMES, 4)
    assert torch.equal(model(x), expected)
    set_peft_model_state_dict(model, partial)
    assert adapter.ranks[gone] == 0
    assert torch.equal(model(x), without)

    adapter.stop_following()
    with pytest.raises(RuntimeError, match="size mismatch"):
        set_peft_model_state_dict(model, full)


def test_the_follower_is_found_as_long_as_it_describes_the_model() -> None:
    model = lora()
    assert RankedAdapter.following(model) is None
    adapter = RankedAdapter(model)
    adapter.follow_loading()
    assert RankedAdapter.following(model) is adapter
    adapter.set_ranks({"first": 4, "second": 0, "third": 4})
    assert adapter.describes(model)
    assert not adapter.describes(model, "another")
    other = get_peft_model(model.unload(), LoraConfig(r=2, target_modules=["first"]))
    assert not adapter.describes(other)
    adapter.stop_following()
    assert RankedAdapter.following(model) is None


def test_following_keeps_no_model_alive() -> None:
    model = lora()
    RankedAdapter(model).follow_loading()
    alive = weakref.ref(model.base_model.model)
    del model
    gc.collect()
    assert alive() is None
