"""Compressing an adapter: the sizes that can be asked for, what is written, and what is refused before anything is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from glora import RankAllocationConfig, RankAllocator, compress_adapter
from glora.compress import CompressibleAdapter, Size
from integration.training.loop_case import update
from unit.test_export import base, lora, outputs, trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ranks 2 (6 -> 8) and 4 (8 -> 4): 28 and 48 parameters."""
    trained(lora()).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_the_result_is_one_line(folder: Path, tmp_path: Path) -> None:
    made = compress_adapter(folder, parameters=30, output=tmp_path / "out")
    assert made.parameters <= 30
    assert made.parameters_before == 76
    assert made.ranks_before == {"0": 2, "2": 4}
    line = str(made)
    assert "\n" not in line
    assert re.search(f" {sum(made.ranks.values())} of 6 ranks, {made.parameters} of 76 ", line)
    assert line.endswith(f"{tmp_path / 'out'}")


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ({"parameters": 0.5}, 38),
        ({"parameters": np.float32(0.5)}, 38),
        ({"parameters": 50}, 50),
        ({"parameters": np.int64(50), "max_rank": np.int64(4)}, 50),
        ({"average_rank": 1.5}, 39),
        ({"energy": 1.0}, 76),
    ],
    ids=str,
)
def test_sizes(folder: Path, tmp_path: Path, size: dict[str, Any], parameters: int) -> None:
    made = compress_adapter(folder, **size, output=tmp_path / "out")
    assert parameters - 14 < made.parameters <= parameters, "less than one direction is left over"


def test_a_budget_in_ranks(folder: Path, tmp_path: Path) -> None:
    made = compress_adapter(folder, average_rank=1.5, budget="rank", output=tmp_path / "out")
    assert sum(made.ranks.values()) == 3


@pytest.mark.parametrize("uniform", [False, True])
def test_bounds(folder: Path, tmp_path: Path, uniform: bool) -> None:
    made = compress_adapter(folder, energy=0.01, min_rank=2, uniform=uniform, output=tmp_path / "low")
    assert made.ranks == {"0": 2, "2": 2}
    made = compress_adapter(folder, energy=1.0, max_rank=1, uniform=uniform, output=tmp_path / "high")
    assert made.ranks == {"0": 1, "2": 1}


def test_a_matrix_at_rank_0_leaves_the_file(folder: Path, tmp_path: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({k: v / 1e4 if ".0." in k else v for k, v in tensors.items()}, weights)
    made = compress_adapter(folder, parameters=0.5, output=tmp_path / "out")
    assert made.ranks["0"] == 0
    assert "1 matrix without an adapter" in str(made)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["exclude_modules"] == "0"
    assert not [k for k in load_file(tmp_path / "out" / "adapter_model.safetensors") if ".0." in k]
    loaded = PeftModel.from_pretrained(base(), str(tmp_path / "out"))
    original = PeftModel.from_pretrained(base(), str(folder))
    torch.testing.assert_close(outputs(loaded), outputs(original), rtol=0.5, atol=0.5)
    assert type(loaded.base_model.model[0]) is nn.Linear


def test_biases_of_a_module_at_rank_0_stay(tmp_path: Path) -> None:
    """They are trained too, with bias="all"; and the module is no LoRA layer any longer."""
    model = trained(lora(bias="all"))
    with torch.no_grad():
        model.base_model.model[0].lora_A["default"].weight.mul_(1e-6)
        model.base_model.model[0].base_layer.bias.add_(1)
    model.save_pretrained(tmp_path / "adapter")
    made = compress_adapter(tmp_path / "adapter", parameters=0.6, output=tmp_path / "out")
    assert made.ranks == {"0": 0, "2": 3}
    compress_adapter(model, parameters=0.6)
    loaded = PeftModel.from_pretrained(base(), str(tmp_path / "out"))
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-5)


def test_a_trained_bias_keeps_the_adapter_that_it_is_saved_with(tmp_path: Path) -> None:
    """PEFT saves a bias="lora_only" only where there is an adapter, so that a folder has to keep it as a model does."""
    model = trained(lora(bias="lora_only"))
    with torch.no_grad():
        model.base_model.model[0].lora_A["default"].weight.mul_(1e-6)
    model.save_pretrained(tmp_path / "adapter")
    made = compress_adapter(tmp_path / "adapter", parameters=0.6, output=tmp_path / "out")
    assert made.ranks == {"0": 1, "2": 2} == compress_adapter(model, parameters=0.6).ranks


def test_the_folder_of_a_model_is_no_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="a model.*another folder"):
        compress_adapter(folder, parameters=0.5, output=tmp_path / "model")


def test_a_frozen_adapter_is_cut_too(folder: Path) -> None:
    model = PeftModel.from_pretrained(base(), str(folder))
    assert compress_adapter(model, parameters=0.5).parameters <= 38
    assert compress_adapter(model, parameters=1.0).parameters <= 38


def test_after_a_reallocation_the_matrices_at_rank_0_stay_out(tmp_path: Path) -> None:
    model = lora()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    config = RankAllocationConfig(warmup_steps=2, total_rank=4, max_rank={"0": 0})
    allocator = RankAllocator(model, optimizer, config)
    for _ in range(2):
        model(torch.randn(3, 6)).square().mean().backward()
        update(optimizer, allocator)
    assert allocator.ranks["0"] == 0
    made = compress_adapter(model, max_rank=1, energy=1.0)
    assert made.ranks == {"2": 1}
    assert allocator.ranks == {"0": 0, "2": 1}
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(outputs(PeftModel.from_pretrained(base(), str(tmp_path))), outputs(model))


def test_the_adapter_that_is_there_is_replaced_only_where_asked_for(folder: Path, tmp_path: Path) -> None:
    compress_adapter(folder, parameters=0.5, output=tmp_path / "out")
    with pytest.raises(ValueError, match="an adapter.*overwrite"):
        compress_adapter(folder, parameters=0.5, output=tmp_path / "out")
    compress_adapter(folder, parameters=0.5, output=tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match="another folder"):
        compress_adapter(folder, parameters=0.5, output=folder, overwrite=True)
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(ValueError, match="file is a file, .*folder"):
            compress_adapter(folder, parameters=0.5, output=tmp_path / name, overwrite=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no size .*average_rank, parameters, energy"),
        ({"average_rank": 2, "energy": 0.5}, "average_rank=2 and energy=0.5 given"),
        ({"average_rank": 0}, "average_rank=0 .*above 0"),
        ({"average_rank": 99}, r"average_rank=99 .*rank [\d.]+ in every matrix; "),
        ({"average_rank": float("nan")}, "average_rank=nan"),
        ({"parameters": 1.5}, "parameters=1.5 must be a share"),
        ({"parameters": 0}, "parameters=0 must be"),
        ({"parameters": True}, "parameters=True must be"),
        ({"parameters": 11}, "parameters=11 pays for no direction"),
        ({"parameters": 11, "uniform": True}, "parameters=11 pays for no direction"),
        ({"parameters": 0.5, "budget": "rank"}, "does not go with budget='rank'"),
        ({"parameters": 0.2, "min_rank": 2}, "min_rank"),
        ({"parameters": 0.2, "min_rank": 2, "uniform": True}, "min_rank"),
        ({"energy": 1.1}, "energy=1.1 .*above 0 .*at most 1"),
        ({"energy": 0.0}, "energy=0.0"),
        ({"average_rank": 2, "budget": "ranks"}, "budget='ranks' .*rank, parameters; .*'rank'"),
        ({"average_rank": 2, "min_rank": -1}, "min_rank=-1"),
        ({"average_rank": 2, "min_rank": 3, "max_rank": 2}, "min_rank=3 and max_rank=2"),
        ({"average_rank": 2, "max_rank": 0}, "max_rank=0"),
        ({"average_rank": True}, "average_rank=True must be a number"),
        ({"average_rank": "1"}, "average_rank='1' must be a number"),
        ({"energy": True}, "energy=True must be"),
        ({"energy": "0.9"}, "energy='0.9' must be"),
        ({"energy": 0.9, "min_rank": 1.5}, "min_rank=1.5 .* ints"),
        ({"energy": 0.9, "min_rank": {"0": 1}}, "min_rank={'0': 1} .* ints"),
        ({"energy": 0.9, "max_rank": 2.5}, "max_rank=2.5: ints"),
    ],
    ids=str,
)
def test_sizes_and_bounds_that_make_no_sense(
    folder: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compress_adapter(folder, **arguments, output=tmp_path / "out")
    model = PeftModel.from_pretrained(base(), str(folder))
    with pytest.raises(ValueError, match=message):
        compress_adapter(model, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_needs_an_output_and_a_model_is_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="output .*give the folder"):
        compress_adapter(folder, parameters=0.5)
    for output in (None, tmp_path / "out"):
        with pytest.raises(TypeError, match="model=5 must be"):
            compress_adapter(5, parameters=0.5, output=output)
    with pytest.raises(ValueError, match="get_peft_model"):
        compress_adapter(base(), parameters=0.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e25])
def test_a_factor_that_is_not_finite_is_named(folder: Path, tmp_path: Path, value: float) -> None:
    model = PeftModel.from_pretrained(base(), str(folder))
    with torch.no_grad():
        model.base_model.model[2].lora_B["default"].weight[0, 0] = value
    model.save_pretrained(tmp_path / "broken")
    for adapter, output in ((model, None), (tmp_path / "broken", tmp_path / "out")):
        with pytest.raises(ValueError, match="2 .*inf, NaN .*1e19 .*B"):
            compress_adapter(adapter, parameters=0.5, output=output)


def test_an_adapter_that_has_learned_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="B·A is 0"):
        compress_adapter(lora(init_lora_weights=True), parameters=0.5, output=tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "groups=2|grouped convolution"),
        (lambda: nn.Sequential(nn.MultiheadAttention(8, 2)), "MultiheadAttention"),
    ],
    ids=["grouped convolution", "attention"],
)
def test_layers_that_cannot_be_cut(make: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    model = get_peft_model(make(), LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "saved")
    for adapter, output in ((model, None), (tmp_path / "saved", tmp_path / "out")):
        with pytest.raises(ValueError, match=message):
            compress_adapter(adapter, parameters=0.5, output=output)


def test_tied_matrices_are_refused(tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Embedding(5, 4)), LoraConfig(r=2, target_modules=["0"]))
    model.peft_config["default"].ensure_weight_tying = True
    model.save_pretrained(tmp_path / "tied")
    with pytest.raises(ValueError, match="ensure_weight_tying=True"):
        compress_adapter(tmp_path / "tied", parameters=0.5, output=tmp_path / "out")


def test_what_max_rank_leaves_of_the_budget_is_said(tmp_path: Path) -> None:
    trained(lora()).save_pretrained(tmp_path / "adapter")  # ranks 2 of 6 × 8 and 4 of 8 × 4
    adapter = CompressibleAdapter(tmp_path / "adapter")
    made = adapter.cut(Size(parameters=0.75, max_rank=1))
    assert made.unspent == 0.75 * (2 * 14 + 4 * 12) - (14 + 12)
    assert "; max_rank leaves 31 parameters " in str(made)
    assert "max_rank leaves 1 rank " in str(adapter.cut(Size(average_rank=1.5, budget="rank", max_rank=1)))
    assert "unspent" not in str(adapter.cut(Size(parameters=0.75, max_rank=4)))
