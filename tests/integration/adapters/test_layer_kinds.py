"""Every kind of layer, adapter, initialisation and model: it works from the first step to stock PEFT, or is refused at once."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraGAConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from glora import RankAllocationConfig, RankAllocator, export_uniform
from glora.lora import discovery as adapter_discovery
from glora.lora.adapter import RankedAdapter
from glora.lora.following import follow_loading, following
from integration.adapters.adapter_life import Setup, adamw, live_through, logits_of, train
from integration.adapters.layer_kinds import (
    TARGETS,
    WIDTH,
    Attention,
    causal,
    linear,
    llama,
    lora,
    of,
    text,
    with_lora_ga,
)
from integration.adapters.support_cases import ADAPTERS, INITIALISATIONS, LAYERS, MODELS, Case

CASES = [*LAYERS, *ADAPTERS, *INITIALISATIONS, *MODELS]


@pytest.mark.parametrize("case", [case for case in CASES if case.setup], ids=lambda case: case.thing)
def test_it_works(case: Case, tmp_path: Path) -> None:
    live_through(case.setup, tmp_path)


@pytest.mark.parametrize("case", [case for case in CASES if case.make], ids=lambda case: case.thing)
@pytest.mark.filterwarnings("ignore:aLoRA:UserWarning")
def test_it_is_refused_before_the_first_step(case: Case) -> None:
    model = case.make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=case.error):
        RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1, **case.allocation))
    assert not optimizer._optimizer_step_post_hooks, "a refused allocator listens to the optimizer"


@pytest.mark.parametrize(
    "options",
    [
        dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        dict(load_in_8bit=True),
    ],
    ids=["4 bit", "8 bit"],
)
def test_quantised_bases(options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    llama(width=64).save_pretrained(tmp_path / "base")

    def quantised() -> nn.Module:
        config = BitsAndBytesConfig(**options)
        base = LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, device_map="cpu")
        return prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)

    # bitsandbytes computes in 16 bits; and PEFT rounds to 4 or 8 when it merges
    setup = Setup(quantised, causal(["q_proj", "k_proj", "v_proj", "up_proj"]), text, merges=False, rounding=5e-2)
    life = live_through(setup, tmp_path)
    layer = life.allocator.adapter.matrices["model.layers.0.mlp.up_proj"].layer
    assert type(layer).__name__ == ("Linear4bit" if "load_in_4bit" in options else "Linear8bitLt")


def test_lora_that_never_gets_a_gradient_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """nn.MultiheadAttention computes with the weight of out_proj and never calls it, so PEFT's LoRA there learns nothing."""
    model = get_peft_model(Attention(), lora(target_modules=["out_proj", "linear"])())
    optimizer = adamw(model)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=2))
    caplog.set_level(logging.WARNING, logger="glora")
    train(model, optimizer, allocator, of(2, 3, WIDTH)(), 2)
    assert "never got a gradient: attention.out_proj" in caplog.text
    assert allocator.ranks == {"attention.out_proj": 0, "linear": 8}
    train(model, optimizer, allocator, of(2, 3, WIDTH)(), 1)


@pytest.mark.parametrize("which", ["default", "second"])
def test_other_adapters_stay_as_they_are(which: str, tmp_path: Path) -> None:
    """Two adapters on one matrix, the active one loses it; both are saved, and stock PEFT loads both."""
    other = {"default": "second", "second": "default"}[which]
    base = llama()
    torch.manual_seed(1)
    model = get_peft_model(base, causal()())
    model.add_adapter("second", causal(["q_proj", "v_proj", "o_proj"], lora_alpha=16)())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()

    def logits(model: nn.Module, adapter: str) -> torch.Tensor:
        model.set_adapter(adapter)
        return logits_of(model, text())

    untouched = logits(model, other)
    model.set_adapter(which)
    optimizer = adamw(model)
    limits = {"model.layers.0.self_attn.q_proj": 0, "model.layers.0.self_attn.v_proj": 2}
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1, max_rank=limits))
    assert allocator.adapter.name == which
    train(model, optimizer, allocator, text(), 2)
    assert sorted(allocator.ranks.values()) == [0, 2, 10]
    assert model.active_adapters == [which]
    assert torch.equal(logits(model, other), untouched)
    trained = logits(model, which)

    model.save_pretrained(tmp_path)
    folders = {"default": tmp_path, "second": tmp_path / "second"}
    loaded = PeftModel.from_pretrained(llama(), folders["default"])
    loaded.load_adapter(folders["second"], "second")
    assert torch.equal(logits(loaded, which), trained)
    assert torch.equal(logits(loaded, other), untouched)


class Classifier(nn.Module):
    """A classifier as users write it around an adapted encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x))


@pytest.mark.parametrize("adapted", ["by get_peft_model", "LoraModel"])
def test_an_adapted_model_inside_another(adapted: str, tmp_path: Path) -> None:
    """PEFT's configuration is inside; it must follow, or what is saved could not be loaded."""
    inputs = of(6, WIDTH)()

    def classifier() -> tuple[nn.Module, nn.Module, RankAllocator]:
        torch.manual_seed(1)
        encoder = get_peft_model(linear(), lora()())
        model = Classifier(encoder)
        optimizer = adamw(model)
        given = model if adapted == "by get_peft_model" else encoder.base_model
        return (
            model,
            encoder,
            RankAllocator(given, optimizer, RankAllocationConfig(warmup_steps=1, max_rank={"first": 0})),
        )

    model, encoder, allocator = classifier()
    train(model, allocator._optimizer, allocator, inputs, 3)
    assert list(allocator.ranks) == TARGETS
    assert allocator.ranks["first"] == 0
    live = logits_of(encoder, inputs)
    encoder.save_pretrained(tmp_path / "adapter")
    export_uniform(model, tmp_path / "uniform")
    for folder in ("adapter", "uniform"):
        loaded = logits_of(PeftModel.from_pretrained(linear(), tmp_path / folder), inputs)
        torch.testing.assert_close(loaded, live, rtol=1e-5, atol=1e-5)

    again, _, resumed = classifier()
    resumed.load_state_dict(allocator.state_dict())
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(again, inputs), logits_of(model, inputs))

    fresh, _, follower = classifier()
    follow_loading(follower.adapter)
    fresh.load_state_dict(model.state_dict())
    assert following(fresh).adapter is follower.adapter
    assert follower.adapter.ranks == allocator.ranks


def test_a_configuration_that_others_share_stays_as_it_was(tmp_path: Path) -> None:
    """PEFT keeps the object it is given; ranks written into it would be the next run's, and another adapter's."""
    config = lora()()
    model = get_peft_model(linear(), config)
    model.add_adapter("second", config)
    optimizer = adamw(model)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1, max_rank={"first": 0}))
    train(model, optimizer, allocator, of(6, WIDTH)(), 1)
    assert model.peft_config["default"].r == max(allocator.ranks.values())

    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["r"] == 4
    PeftModel.from_pretrained(linear(), tmp_path / "second")
    assert RankedAdapter(get_peft_model(linear(), config)).ranks == dict.fromkeys(TARGETS, 4)


@pytest.mark.parametrize(
    ("fields", "adapt"),
    [
        (dict(init_lora_weights="pissa"), get_peft_model),
        (dict(init_lora_weights="olora"), get_peft_model),
        (dict(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(scale="weight_svd")), with_lora_ga),
    ],
    ids=lambda value: value["init_lora_weights"] if isinstance(value, dict) else "",
)
def test_refused_initialisations_would_be_saved_wrongly(
    fields: dict[str, Any], adapt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If PEFT ever loads these at another rank than they began with, the refusal can go."""
    monkeypatch.setattr(adapter_discovery, "INITIALIZATIONS_FROM_THE_BASE", ())
    inputs = of(6, WIDTH)()
    base = linear()
    before = base.first.weight.detach().clone()
    model = adapt(base, lora(**fields)())
    assert not torch.allclose(base.first.base_layer.weight, before), "the base weights did not change"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "beginning")
    model.peft_config["default"].init_lora_weights = fields["init_lora_weights"]

    RankedAdapter(model).set_ranks({"first": 2, "second": 4, "third": 6})
    model.save_pretrained(tmp_path / "as it is")
    loaded = PeftModel.from_pretrained(linear(), tmp_path / "as it is")
    assert not torch.allclose(logits_of(loaded, inputs), logits_of(model, inputs), atol=1e-2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=tmp_path / "beginning")
