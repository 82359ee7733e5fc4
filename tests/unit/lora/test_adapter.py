"""Matrices that leave the model and come back: their place in the module tree, in the optimizer, and in what is loaded."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from glora import resize_lora_layer
from glora.lora.adapter import RankedAdapter
from glora.lora.following import follow_loading, following, stop_following

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


@pytest.mark.parametrize("gone", [("second",), ("first", "second"), ("first", "third")])
def test_places_in_the_optimizer_never_change(gone: tuple[str, ...]) -> None:
    """A saved state then fits an optimizer that is made from the model as the run began, with any groups."""
    model = lora()
    adapter = RankedAdapter(model)
    optimizer = by_factor(model)
    held = [list(group["params"]) for group in optimizer.param_groups]
    there = [p for p in model.parameters() if p.requires_grad]
    adapter.set_ranks({n: 0 if n in gone else 6 for n in NAMES}, optimizer=optimizer)
    assert all(a is b for group, before in zip(optimizer.param_groups, held) for a, b in zip(group["params"], before))
    assert {p.numel() for m in adapter.matrices.values() if m.name in gone for p in m.factors} == {0}
    adapter.set_ranks(dict.fromkeys(NAMES, 4), optimizer=optimizer)
    assert [id(p) for p in model.parameters() if p.requires_grad] == list(map(id, there))
    assert {p.shape for p in there} == {(4, 8), (8, 4)}


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
def test_loading_brings_a_matrix_back_and_takes_another_out(gone: str, tmp_path: Path) -> None:
    model, x = lora().eval(), torch.randn(3, 8)
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    full, expected = copy.deepcopy(get_peft_model_state_dict(model)), model(x)

    adapter.set_ranks({n: 0 if n == gone else 6 for n in NAMES})
    model.save_pretrained(tmp_path)
    partial, without = copy.deepcopy(get_peft_model_state_dict(model)), model(x)
    set_peft_model_state_dict(model, full)
    assert adapter.ranks == dict.fromkeys(NAMES, 4)
    assert torch.equal(model(x), expected)
    with pytest.raises(RuntimeError, match="size mismatch"):  # weights alone do not say that a matrix is at rank 0
        set_peft_model_state_dict(model, partial)
    assert adapter.ranks == dict.fromkeys(NAMES, 4)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert adapter.ranks[gone] == 0
    optimizer = by_factor(model)
    assert names_in(model, optimizer) == [list(NAMES)] * 2, "an optimizer that is made now has all places"
    assert torch.equal(model(x), without)
    assert type(getattr(model.base_model.model, gone)) is nn.Linear

    stop_following(adapter)
    with pytest.raises(RuntimeError, match="size mismatch"):
        set_peft_model_state_dict(model, full)


def test_the_follower_is_found_as_long_as_it_describes_the_model() -> None:
    model = lora()
    assert following(model) is None
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    assert following(model).adapter is adapter
    adapter.set_ranks({"first": 4, "second": 0, "third": 4})
    assert adapter.describes(model)
    assert not adapter.describes(model, "another")
    other = get_peft_model(model.unload(), LoraConfig(r=2, target_modules=["first"]))
    assert not adapter.describes(other)
    stop_following(adapter)
    assert following(model) is None


def test_the_follower_is_found_where_matrices_at_rank_0_hold_their_places() -> None:
    """Another one would take the ranks that were loaded for those that the model was made with."""
    model = lora()
    adapter = RankedAdapter(model)
    known = follow_loading(adapter)
    known.take_ranks({"first": 0, "second": 4, "third": 4}, keep_places=True)
    assert adapter.describes(model)
    known.take_out_empty()
    assert adapter.describes(model)


def test_following_keeps_no_model_alive() -> None:
    model = lora()
    follow_loading(RankedAdapter(model))
    alive = weakref.ref(model.base_model.model)
    del model
    gc.collect()
    assert alive() is None


def test_an_adapter_of_other_ranks_and_another_scaling_is_an_error_as_in_peft(tmp_path: Path) -> None:
    """A warm start: PEFT reports the shapes; following them with the model's own scaling would change the function."""
    wide = get_peft_model(Net(), LoraConfig(r=8, lora_alpha=8, target_modules=list(NAMES)))
    wide.save_pretrained(tmp_path)
    model = lora()
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    with pytest.raises(ValueError, match="first .*scaling 2, .*checkpoint 1; .*LoraConfig"):
        model.load_adapter(tmp_path, "default", is_trainable=True)
    assert adapter.ranks == dict.fromkeys(NAMES, 4)
    wide.peft_config["default"].lora_alpha = 16
    wide.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert adapter.ranks == dict.fromkeys(NAMES, 8)


def test_a_matrix_that_the_weights_do_not_have_has_no_scaling_to_compare(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(NAMES), alpha_pattern={"second": 32})
    saved, model = (get_peft_model(Net(), copy.deepcopy(config)) for _ in range(2))
    RankedAdapter(saved).set_ranks({"first": 2, "second": 0, "third": 6})
    saved.save_pretrained(tmp_path)
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert adapter.ranks == {"first": 2, "second": 0, "third": 6}


def test_a_part_of_an_adapter_leaves_the_rest_alone(tmp_path: Path) -> None:
    """Absent is not rank 0: a warm start of some matrices."""
    part = get_peft_model(Net(), LoraConfig(r=4, lora_alpha=8, target_modules=["first"]))
    part.save_pretrained(tmp_path)
    model = lora()
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    model.load_adapter(tmp_path, "default", is_trainable=True)
    assert adapter.ranks == dict.fromkeys(NAMES, 4)
    wide = get_peft_model(Net(), LoraConfig(r=6, lora_alpha=12, target_modules=["first"]))
    wide.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path, "default", is_trainable=True)
    assert adapter.ranks == dict.fromkeys(NAMES, 4)


def test_an_adapter_of_more_modules_is_left_to_peft(tmp_path: Path) -> None:
    """Other ranks are an error there; its part that fits this model would be another function."""
    saved = lora()
    RankedAdapter(saved).set_ranks({"first": 2, "second": 4, "third": 4})
    saved.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=4, lora_alpha=8, target_modules=["first", "second"]))
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path, "default")
    assert adapter.ranks == {"first": 4, "second": 4}


def test_a_module_of_two_names_follows() -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        net = Net()
        net.third = net.first
        return get_peft_model(net, LoraConfig(r=4, lora_alpha=8, target_modules=list(NAMES)))

    cut, model = tied(), tied()
    RankedAdapter(cut).set_ranks({"first": 2, "second": 3})
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    model.load_state_dict(cut.state_dict())
    assert adapter.ranks == {"first": 2, "second": 3}


@pytest.mark.parametrize("copied", ["saved", "copied"])
def test_a_copy_of_the_model_follows_nothing(copied: str, tmp_path: Path) -> None:
    model = lora()
    adapter = RankedAdapter(model)
    follow_loading(adapter)
    if copied == "saved":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(model)
    assert following(other) is None
    RankedAdapter(model).set_ranks({"first": 2, "second": 4, "third": 4})
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_adapter(tmp_path, "default")


@pytest.mark.parametrize("teacher_has", [list(NAMES), ["second", "third"]])
def test_putting_an_adapter_back_leaves_others_as_they_are(teacher_has: list[str]) -> None:
    model, x = lora().eval(), torch.randn(3, 8)
    adapter = RankedAdapter(model)
    for factor in adapter.factors:
        nn.init.normal_(factor)
    adapter.set_ranks({"first": 0, "second": 4, "third": 4})
    model.add_adapter("teacher", LoraConfig(r=2, target_modules=teacher_has, init_lora_weights=False))
    model.set_adapter("teacher")
    before = model(x)
    adapter.set_ranks(dict.fromkeys(NAMES, 4))
    assert torch.equal(model(x), before)
    assert not any("base_layer.base_layer" in name for name, _ in model.named_modules()), "one LoRA layer in another"
    model.set_adapter("default")
    assert adapter.describes(model)
    assert not torch.equal(model(x), before)


def test_putting_an_adapter_back_leaves_disabled_adapters_disabled() -> None:
    model, x = lora().eval(), torch.randn(3, 8)
    adapter = RankedAdapter(model)
    for factor in adapter.factors:
        nn.init.normal_(factor)
    adapter.set_ranks({"first": 0, "second": 4, "third": 4})
    with model.disable_adapter():
        before = model(x)
        adapter.set_ranks(dict.fromkeys(NAMES, 4))
        nn.init.normal_(adapter.matrices["first"].B)
        assert torch.equal(model(x), before)
    assert not torch.equal(model(x), before)


def test_the_public_resize_keeps_the_configuration_true(tmp_path: Path) -> None:
    model = lora().eval()
    layers = {name: matrix.layer for name, matrix in RankedAdapter(model).matrices.items()}
    resize_lora_layer(layers["first"], 7, model=model)
    resize_lora_layer(layers["third"], 0, model=model)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    stock = PeftModel.from_pretrained(lora().unload(), tmp_path).eval()
    assert torch.equal(stock(x), model(x))
    with pytest.raises(TypeError, match="'model'"):
        resize_lora_layer(layers["second"], 3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="'default'; give"):
        resize_lora_layer(layers["second"], 2, model=lora())
