"""`glora ranks` and `glora export`, as a user calls them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from glora.experiments.calibration import SuggestedRanks
from integration.training.trainer_case import base_model, peft_model

PATTERNS = {"^a\\.b": 3, "^c": 5}


def test_the_printed_pattern_makes_an_adapter(call, tiny_deberta: Path, tiny_options: tuple[str, ...]) -> None:
    done = call("ranks", *tiny_options, "--batches", 2, "--rank", 4, "--batch-size", 8)
    assert done.err == ""
    printed = json.loads(done.out)
    assert printed["r"] == 4
    done = call("ranks", *tiny_options, "--batches", 1000, "--batch-size", 100)
    assert "only 2 batches, not 1,000" in done.err
    assert sum(printed["rank_pattern"].values()) == 4 * len(printed["rank_pattern"])
    assert min(printed["rank_pattern"].values()) >= 1
    assert len(set(printed["rank_pattern"].values())) > 1

    targets = ["query_proj", "key_proj", "value_proj", "dense"]
    model = get_peft_model(base_model(tiny_deberta), LoraConfig(target_modules=targets, **printed))
    layers = [m for n, m in model.named_modules() if hasattr(m, "lora_A") and ".layer." in n]
    assert sum(m.r["default"] for m in layers) == sum(printed["rank_pattern"].values())
    assert {m.scaling["default"] for m in layers} == {2.0}


def test_target_modules_are_those_of_a_run(call, tiny_options: tuple[str, ...]) -> None:
    command = ("ranks", *tiny_options, "--batches", "1", "--target-modules")
    printed = json.loads(call(*command, "dense,query_proj").out)
    assert len(printed["rank_pattern"]) == 2 * 4
    assert not any("pooler" in name for name in printed["rank_pattern"]), "the head is trained whole"
    message = call(*command, "dense,querry_proj").err
    assert "'querry_proj' matches no linear layer" in message
    assert "did you mean" in message


def test_formats_say_the_same() -> None:
    patterns = {"rank_pattern": PATTERNS, "alpha_pattern": {"^a\\.b": 4.5, "^c": 7.5}}
    suggested = SuggestedRanks(rank=4, alpha=6.0, patterns=patterns)
    as_json = json.loads(suggested.text("json"))
    as_yaml = yaml.safe_load(suggested.text("yaml"))
    as_python = eval(f"dict({suggested.text('python')})")
    assert as_json == as_python == {"r": 4, "lora_alpha": 6, **patterns}
    assert as_yaml == {
        "lora_r": 4,
        "lora_alpha": 6,
        "lora_rank_pattern": PATTERNS,
        "lora_alpha_pattern": {"^a\\.b": 4.5, "^c": 7.5},
    }


def test_export_pads_what_lies_in_a_folder(call, tiny_deberta: Path, tmp_path: Path) -> None:
    model = peft_model(tiny_deberta, rank_pattern={"query_proj": 2}, alpha_pattern={"query_proj": 4})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    done = call("export", tmp_path / "adapter", "--uniform", "--output", tmp_path / "out")
    assert str(tmp_path / "out") in done.out
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {len(t) for key, t in tensors.items() if "lora_A" in key} == {4}


@pytest.mark.parametrize("present", ["adapter_config.json", "adapter_model.safetensors"])
def test_export_replaces_an_adapter_only_where_it_is_told_to(
    call, present: str, tiny_deberta: Path, tmp_path: Path
) -> None:
    peft_model(tiny_deberta).save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")  # no reason to refuse, and none to touch it
    command = ("export", tmp_path / "adapter", "--uniform", "--output", out)
    assert call(*command).code == 0
    written = {path.name for path in out.iterdir()}
    (out / present).write_text("old")
    for name in written - {present, "README.md"}:
        (out / name).unlink()
    refused = call(*command)
    assert refused.code == 2
    assert re.search(rf"out .*adapter \({present}\).*another folder.*--overwrite", refused.err)
    assert (out / present).read_text() == "old"
    assert call(*command, "--overwrite").code == 0
    assert load_file(out / "adapter_model.safetensors")
    assert (out / "README.md").read_text() == "mine"
