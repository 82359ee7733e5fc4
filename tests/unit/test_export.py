"""A uniform export computes what the adapter computes, or is refused with the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import BdLoraConfig
from safetensors.torch import load_file
from torch import nn

from glora import compress_adapter, export_uniform


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def lora(**fields: object) -> PeftModel:
    """Ranks 2 and 4."""
    settings = dict(r=4, lora_alpha=8, target_modules=["0", "2"], rank_pattern={"^0": 2}, init_lora_weights=False)
    return get_peft_model(base(), LoraConfig(**settings | fields))


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 18).view(3, 6))


def trained(model: PeftModel) -> PeftModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_an_initialization_that_changed_the_base_is_refused_until_it_is_converted(tmp_path: Path, init: str) -> None:
    model = lora(init_lora_weights=init)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = init
    trained(model).save_pretrained(tmp_path / "trained")
    for adapter in (model, tmp_path / "trained"):
        with pytest.raises(ValueError, match=f"'{init}'.*path_initial_model_for_weight_conversion"):
            export_uniform(adapter, tmp_path / "padded")
    start = str(tmp_path / "start")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=start)
    export_uniform(tmp_path / "plain", tmp_path / "padded")
    loaded = PeftModel.from_pretrained(base(), str(tmp_path / "padded"))
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-5)


def configured(**fields: Any) -> Callable[[], nn.Module]:
    """A model whose configuration says so, where PEFT would need other packages or data."""

    def make() -> nn.Module:
        model = lora()
        for name, value in fields.items():
            setattr(model.peft_config["default"], name, value)
        return model

    return make


def of(config: PeftConfig) -> Callable[[], nn.Module]:
    return lambda: get_peft_model(base(), config)


CONVERT = "path_initial_model_for_weight_conversion"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    **{
        how: (configured(init_lora_weights=how), f"'{how}'.*{CONVERT}")
        for how in ("pissa", "olora", "corda", "lora_ga")
    },
    "loftq": (configured(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}), f"'loftq'.*{CONVERT}"),
    "BD-LoRA": (configured(use_bdlora=BdLoraConfig(target_modules_bd_a=["0"], nblocks=2)), "use_bdlora.*merge"),
    "LoHa": (of(LoHaConfig(r=2, target_modules=["0"])), "LOHA"),
    "AdaLoRA": (of(AdaLoraConfig(total_step=10, target_modules=["0"])), "ADALORA"),
    "IA3": (of(IA3Config(target_modules=["0"], feedforward_modules=[])), "IA3"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_more_than_a_product_is_refused(make: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    """By the export and by the cut, from the model and from its folder."""
    model = make()
    model.save_pretrained(tmp_path / "saved")
    for adapter in (model, tmp_path / "saved"):
        with pytest.raises(ValueError, match=message):
            export_uniform(adapter, tmp_path / "out")
        with pytest.raises(ValueError, match=message):
            compress_adapter(adapter, parameters=0.5, output=tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        compress_adapter(model, parameters=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"init_lora_weights": "orthogonal"}], ids=str)
def test_from_the_model_and_from_its_folder_the_same(tmp_path: Path, fields: dict) -> None:
    model = trained(lora(**fields))
    model.save_pretrained(tmp_path / "saved")
    for adapter, folder in ((model, "of model"), (tmp_path / "saved", "of folder")):
        export_uniform(adapter, tmp_path / folder)
        config = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {}, {})
        loaded = PeftModel.from_pretrained(base(), str(tmp_path / folder))
        torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-5, atol=1e-6)


def test_an_adapter_is_replaced_only_where_asked_for(tmp_path: Path) -> None:
    """The padded adapter cannot be trained on: it must not take the place of the one that can."""
    model = lora()
    model.save_pretrained(tmp_path)
    before = load_file(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapter_config.json and adapter_model.safetensors.*overwrite"):
        export_uniform(model, tmp_path)
    with pytest.raises(ValueError, match="another folder"):
        export_uniform(tmp_path, tmp_path / "." / "", overwrite=True)
    after = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    export_uniform(model, tmp_path, overwrite=True)
    assert {len(t) for key, t in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_A" in key} == {4}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_no_model_and_no_folder_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="model=5 must be"):
        export_uniform(5, tmp_path)
    model = lora()
    for layer in (model.base_model.model[0], model.base_model.model[2]):
        layer.set_scale("default", 0)
    with pytest.raises(ValueError, match="scaling 0"):
        export_uniform(model, tmp_path / "out")
