"""Which folders count as a whole checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glora import last_complete_checkpoint


def make(folder: Path, step: int, *, without: tuple[str, ...] = ()) -> Path:
    """The files of a Trainer's checkpoint of a PEFT model."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if "adapter_model.safetensors" not in without:
        save_file({"lora_A.weight": torch.zeros(4, 4)}, path / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        if name not in without:
            torch.save({"step": torch.zeros(100)}, path / name)
    if "trainer_state.json" not in without:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_the_newest_by_number(tmp_path: Path) -> None:
    for step in (9, 10, 2):
        make(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_none_yet(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    assert last_complete_checkpoint(tmp_path / "no such folder") is None
    make(tmp_path, 3, without=("trainer_state.json",))
    assert last_complete_checkpoint(str(tmp_path)) is None


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_file_that_is_missing_or_cut_off(tmp_path: Path, name: str) -> None:
    make(tmp_path, 1)
    make(tmp_path, 2, without=(name,))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    file = make(tmp_path, 3) / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_a_state_of_another_step(tmp_path: Path) -> None:
    path = make(tmp_path, 3)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    assert last_complete_checkpoint(tmp_path) is None


def test_model_only_and_adapters_in_subfolders(tmp_path: Path) -> None:
    make(tmp_path, 1, without=("optimizer.pt", "scheduler.pt", "rng_state.pth"))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    path = make(tmp_path, 2, without=("adapter_model.safetensors",))
    (path / "second").mkdir()
    save_file({"lora_A.weight": torch.zeros(4, 4)}, path / "second" / "adapter_model.safetensors")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
