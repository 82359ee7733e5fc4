"""Adapters in files: damaged, contradictory and hostile ones are one message that names the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from glora import export_uniform
from glora.lora.saved_adapter import read_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = "base_model.model.first.lora_{}.weight"


def write(folder: Path, **fields: Any) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.first, model.second = nn.Linear(6, 8), nn.Linear(8, 4)
    config = dict(r=2, lora_alpha=4, target_modules=["first", "second"], init_lora_weights=False)
    get_peft_model(model, LoraConfig(**config | fields)).save_pretrained(folder)
    return folder


def edited(**fields: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | fields))

    return edit


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return edit


def cut(name: str, share: float) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: int(share * 1000)])


def pickled(what: object) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        torch.save(what, folder / "adapter_model.bin")

    return edit


ERRORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), "has no adapter_config"),
    "empty": (cut(CONFIG, 0), CONFIG),
    "cut off": (cut(CONFIG, 0.1), CONFIG),
    "a list": (lambda folder: (folder / CONFIG).write_text("[]"), f"{CONFIG}.*not a JSON object"),
    "deep": (lambda folder: (folder / CONFIG).write_text("[" * 100_000), CONFIG),
    "not text": (lambda folder: (folder / CONFIG).write_bytes(b"\xff\xfe{"), CONFIG),
    "an unknown method": (edited(peft_type="NONE SUCH"), CONFIG),
    "rank 0": (edited(r=0), f"{CONFIG}.*r the rank 0"),
    "a rank in words": (edited(r="two"), f"{CONFIG}.*'two'"),
    "a rank in the pattern": (edited(rank_pattern={"first": -1}), f"{CONFIG}.*first the rank -1"),
    "no pattern": (edited(rank_pattern=["first"]), f"{CONFIG}.*rank_pattern"),
    "α of 0": (edited(lora_alpha=0), f"{CONFIG}.*lora_alpha the α 0"),
    "α of NaN": (edited(alpha_pattern={"first": float("nan")}), f"{CONFIG}.*nan"),
    "α of 400 digits": (edited(lora_alpha=10**400), CONFIG),
    "no expression": (edited(alpha_pattern={"(": 3}), rf"{CONFIG}.*'\('"),
    "another rank": (edited(r=3), f"{WEIGHTS}: first has rank 2, .*{CONFIG} gives it 3"),
    "experts": (edited(target_parameters=["experts.gate_up_proj"]), "experts.gate_up_proj.*give the model"),
    "a wrapper's names": (
        tensors(lambda state: [state.update({f"module.{key}": state.pop(key)}) for key in list(state)]),
        f"{WEIGHTS}: module.base_model.model.first.lora_.* does not begin with base_model.model.",
    ),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} does not exist"),
    "weights empty": (cut(WEIGHTS, 0), WEIGHTS),
    "weights cut off": (cut(WEIGHTS, 0.5), WEIGHTS),
    "no LoRA weights": (tensors(lambda state: state.clear()), f"{WEIGHTS} has no LoRA weights"),
    "A without B": (tensors(lambda state: state.pop(KEY.format("B"))), f"{WEIGHTS}.*lora_A.* without its lora_B"),
    "B without A": (tensors(lambda state: state.pop(KEY.format("A"))), f"{WEIGHTS}.*lora_B.* without its lora_A"),
    "a vector": (tensors(lambda state: state.update({KEY.format("A"): torch.zeros(2)})), rf"{WEIGHTS}.*shape \(2,\)"),
    "integers": (tensors(lambda state: state.update({KEY.format("A"): torch.zeros(2, 6).int()})), "int32.*float32"),
    "a pickle of a list": (pickled([torch.zeros(2)]), "adapter_model.bin"),
    "a pickle of code": (pickled({"x": Path("x")}), "adapter_model.bin"),
}


@pytest.mark.parametrize(("damage", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_a_damaged_adapter_is_one_message(
    tmp_path: Path, damage: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write(tmp_path / "adapter")
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        export_uniform(folder, tmp_path / "padded")
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "padded").exists()


@pytest.mark.parametrize(
    "patterns",
    [{"^first": 3, "second": 1}, {".*": 3, "^first": 1}, {"irst": 5}, {r"(fir|seco)\w+": 3}],
    ids=str,
)
def test_ranks_and_alphas_are_those_that_peft_gives(tmp_path: Path, patterns: dict[str, int]) -> None:
    """The first that matches, as a suffix after a dot; exact names are looked up."""
    folder = write(tmp_path, rank_pattern=patterns, alpha_pattern=patterns)
    model = nn.Sequential()
    model.first, model.second = nn.Linear(6, 8), nn.Linear(8, 4)
    built = get_peft_model(model, LoraConfig.from_pretrained(str(folder))).base_model.model
    saved = read_adapter(folder)
    for name in ("first", "second"):
        layer, matrix = getattr(built, name), saved.matrices[name]
        assert (matrix.rank, matrix.alpha) == (layer.r["default"], layer.lora_alpha["default"])
        assert matrix.scaling == layer.scaling["default"]


@pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize(
    "pattern", [r"first(a|aa)+(a|b|ab)*(.a)+c", "(a+)+", "((a|b)c*)*", r"(?:\w{2,})+x", ".*.*.*.*x"]
)
def test_a_pattern_that_may_take_for_ever_is_an_error(tmp_path: Path, field: str, pattern: str) -> None:
    folder = write(tmp_path)
    edited(**{field: {pattern: 2}})(folder)
    with pytest.raises(ValueError, match=rf"{CONFIG}.*{re.escape(repr(pattern))}"):
        read_adapter(folder)


def test_a_folder_that_is_here_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeftConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=f"has no adapter_config.json; give for example {re.escape(str(tmp_path / 'run' / 'adapter'))}"
    ):
        read_adapter(tmp_path / "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="no adapter_config.json; .*save_pretrained"):
        read_adapter(tmp_path / "file")
