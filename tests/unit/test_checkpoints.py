"""Folders that count as a whole checkpoint, and the message about the others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glora import last_complete_checkpoint
from glora.checkpoints import CHECKSUMS, PROMISED, write_checksums


def make(folder: Path, step: int, *, without: tuple[str, ...] = ()) -> Path:
    """The files of a Trainer's checkpoint of a PEFT model."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if "adapter_model.safetensors" not in without:
        save_file({"lora_A.weight": torch.ones(40, 40)}, path / "adapter_model.safetensors")
    if "adapter_config.json" not in without:
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        if name not in without:
            torch.save({"step": torch.ones(100)}, path / name)
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


FILES = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def half_zeroed(content: bytes) -> bytes:
    """A power cut leaves the right length, and blocks that were never written."""
    return cut(content) + bytes(len(content) - len(cut(content)))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("checksums", [True, False], ids=["checksums", "none"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_taken(
    tmp_path: Path, name: str, checksums: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for damage in (None, cut, half_zeroed, lambda _: b""):
        folder = tmp_path / getattr(damage, "__name__", "missing")
        make(folder, 1)
        whole = make(folder, 2)
        if checksums:
            write_checksums(whole)
        assert last_complete_checkpoint(folder) == str(whole)
        assert not caplog.messages
        if damage is None:
            (whole / name).unlink()
        else:
            (whole / name).write_bytes(damage((whole / name).read_bytes()))
        if name == "adapter_model.safetensors" and damage is half_zeroed and not checksums:
            continue  # the one damage that takes a checksum to find
        assert last_complete_checkpoint(folder) == str(folder / "checkpoint-1")
        (message,) = caplog.messages
        assert re.search(r"checkpoint-2 \(.*(damaged|missing)\); using checkpoint-1", message)
        assert (name.partition(".")[0] in message) or damage is None
        caplog.clear()


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "3", "[" * 100_000, "{}", '{"global_step": "2"}', '{"global_step": 2, "stateful_callbacks": 5}'],
)
def test_any_json_is_read(tmp_path: Path, content: str) -> None:
    make(tmp_path, 1)
    for name in ("trainer_state.json", "adapter_config.json", CHECKSUMS):
        path = make(tmp_path / name, 2)
        (path / name).write_text(content)
        last_complete_checkpoint(tmp_path / name)
    (make(tmp_path, 2) / "trainer_state.json").write_text(content)
    if "callbacks" not in content:
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_a_checkpoint_whose_checksums_were_never_written_is_passed_over(tmp_path: Path) -> None:
    """The power went before they were, so the disk may not have the other files either."""
    make(tmp_path, 1)
    path = make(tmp_path, 2)
    state = {"global_step": 2, "stateful_callbacks": {"RankAllocationCallback": {"attributes": {PROMISED: True}}}}
    (path / "trainer_state.json").write_text(json.dumps(state))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    write_checksums(path)
    assert last_complete_checkpoint(tmp_path) == str(path)


def test_what_people_add_or_edit_is_no_damage(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    (path / "README.md").write_text("a card")
    write_checksums(path, others_write="rng_state_*.pth")
    (path / "README.md").write_text("another card")
    torch.save({}, path / "rng_state_1.pth")
    assert last_complete_checkpoint(tmp_path) == str(path)


def test_weights_in_parts(tmp_path: Path) -> None:
    path = make(tmp_path, 1, without=("adapter_model.safetensors", "adapter_config.json"))
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert last_complete_checkpoint(tmp_path) is None
    save_file({"a": torch.ones(2)}, path / "model-1.safetensors")
    assert last_complete_checkpoint(tmp_path) == str(path)


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
    (path / "second" / "adapter_config.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
