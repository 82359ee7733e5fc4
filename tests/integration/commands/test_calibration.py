"""`glora ranks` and `glora export`, as a user calls them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from glora.cli import app
from glora.experiments.calibration import SuggestedRanks
from integration.training.trainer_case import base_model, peft_model

PATTERNS = {"^a\\.b": 3, "^c": 5}


def invoke(*arguments: str) -> str:
    """Return the command's stdout."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        app(arguments)
    return printed.getvalue()


def ranks(*arguments: str) -> str:
    return invoke("ranks", *arguments)


def test_the_printed_pattern_makes_an_adapter(
    tiny_deberta: Path, glue_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--task", "rte", "--data-dir", str(glue_folder), "--batches", "2", "--max-length", "64")
    common = ("--model", str(tiny_deberta), *data)
    printed = json.loads(ranks(*common, "--rank", "4", "--batch-size", "8"))
    assert printed["r"] == 4
    assert capsys.readouterr().err == ""
    ranks(*common, "--batches", "1000", "--batch-size", "100")
    assert "only 2 batches, not 1,000" in capsys.readouterr().err
    assert sum(printed["rank_pattern"].values()) == 4 * len(printed["rank_pattern"])
    assert min(printed["rank_pattern"].values()) >= 1
    assert len(set(printed["rank_pattern"].values())) > 1

    targets = ["query_proj", "key_proj", "value_proj", "dense"]
    model = get_peft_model(base_model(tiny_deberta), LoraConfig(target_modules=targets, **printed))
    layers = [m for n, m in model.named_modules() if hasattr(m, "lora_A") and ".layer." in n]
    assert sum(m.r["default"] for m in layers) == sum(printed["rank_pattern"].values())
    assert {m.scaling["default"] for m in layers} == {2.0}


def test_target_modules_are_those_of_a_run(call, tiny_options: tuple[str, ...]) -> None:
    common = (*tiny_options, "--batches", "1", "--target-modules")
    printed = json.loads(ranks(*common, "dense,query_proj"))
    assert len(printed["rank_pattern"]) == 2 * 4
    assert not any("pooler" in name for name in printed["rank_pattern"]), "the head is trained whole"
    message = call("ranks", *common, "dense,querry_proj").err
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


def test_export_pads_what_lies_in_a_folder(tiny_deberta: Path, tmp_path: Path) -> None:
    model = peft_model(tiny_deberta, rank_pattern={"query_proj": 2}, alpha_pattern={"query_proj": 4})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    arguments = ["export", str(tmp_path / "adapter"), "--uniform", "--output", str(tmp_path / "out")]
    assert str(tmp_path / "out") in invoke(*arguments).replace("\n", "")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {len(t) for key, t in tensors.items() if "lora_A" in key} == {4}


@pytest.mark.parametrize("present", ["adapter_config.json", "adapter_model.safetensors"])
def test_export_replaces_an_adapter_only_where_it_is_told_to(present: str, tiny_deberta: Path, tmp_path: Path) -> None:
    peft_model(tiny_deberta).save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")  # no reason to refuse, and none to touch it
    arguments = ["export", str(tmp_path / "adapter"), "--uniform", "--output", str(out)]
    invoke(*arguments)
    written = {path.name for path in out.iterdir()}
    (out / present).write_text("old")
    for name in written - {present, "README.md"}:
        (out / name).unlink()
    with pytest.raises(ValueError, match=rf"out .*adapter \({present}\).*another folder.*--overwrite"):
        invoke(*arguments)
    assert (out / present).read_text() == "old"
    invoke(*arguments, "--overwrite")
    assert load_file(out / "adapter_model.safetensors")
    assert (out / "README.md").read_text() == "mine"
