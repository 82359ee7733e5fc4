"""Pipes and devices in the place of files, and empty names: one error at once, not a wait, and not the present folder."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from glora import (
    RankAllocationCallback,
    RankAllocator,
    compress_adapter,
    export_uniform,
    last_complete_checkpoint,
    save_allocation,
)
from glora.experiments.data.custom_data import parse_custom_data
from glora.experiments.data.table_files import read_table
from glora.experiments.models.weights import check_model_files
from glora.experiments.structured_text import read_mapping
from glora.lora.saved_adapter import read_adapter
from glora.paths import expanded, named_folder, regular_file


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)


def adapted() -> nn.Module:
    return get_peft_model(Product(), LoraConfig(r=2, target_modules=["first"]))


def adapter_with(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        adapted().save_pretrained(folder)
        (folder / name).unlink(missing_ok=True)
        return folder / name

    return write


def take_ranks(file: Path) -> None:
    callback = RankAllocationCallback(warmup_steps=1)
    callback.on_init_end(TrainingArguments(output_dir=str(file.parent), report_to=[]), None, None, model=adapted())  # type: ignore[arg-type]
    callback.take_ranks_from(file.parent)


CASES: dict[str, tuple[str | Callable[[Path], Path], Callable[[Path], Any]]] = {
    "experiment.json": ("a.json", read_mapping),
    "experiment.yaml": ("a.yaml", read_mapping),
    "data": ("train.csv", read_table),
    "the data of a task": ("train.jsonl", lambda file: parse_custom_data(str(file))),
    "configuration": (adapter_with("adapter_config.json"), lambda file: read_adapter(file.parent)),
    "weights": (adapter_with("adapter_model.safetensors"), lambda file: read_adapter(file.parent)),
    "a model's tokenizer": ("tokenizer.json", lambda file: check_model_files(str(file.parent))),
    "the state of a checkpoint": ("trainer_state.json", take_ranks),
}


@pytest.fixture
def pipe() -> Iterator[Callable[[Path], None]]:
    """Make a named pipe. Who reads it gets nothing after all, so that a test fails and does not hang."""
    made: list[Path] = []

    def make(path: Path) -> None:
        os.mkfifo(path)
        made.append(path)
        threading.Thread(target=lambda: path.open("wb").close(), daemon=True).start()

    yield make
    for path in made:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("what", ["a pipe", "a device"])
def test_what_is_no_file_is_one_error(tmp_path: Path, pipe: Callable[[Path], None], case: str, what: str) -> None:
    place, read = CASES[case]
    file = tmp_path / place if isinstance(place, str) else place(tmp_path)
    if what == "a pipe":
        pipe(file)
    else:
        file.symlink_to("/dev/null")
    with pytest.raises((OSError, ValueError)) as refused:
        read(file)
    assert f"{file} is {what}; save its content" in f"{refused.value} {refused.value.__cause__}"


def test_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="a folder; name a file"):
        regular_file(tmp_path)
    for absent in (tmp_path / "absent", tmp_path / "absent" / "file"):
        with pytest.raises(FileNotFoundError, match="'.*absent"):
            regular_file(absent)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    assert regular_file(str(tmp_path / "link")) == tmp_path / "link"


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "rng_state.pth"]
)
@pytest.mark.parametrize("folder", [True, False], ids=["a folder", "a pipe"])
def test_a_checkpoint_is_of_files(
    tmp_path: Path, pipe: Callable[[Path], None], name: str, folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        path = tmp_path / f"checkpoint-{step}"
        adapted().save_pretrained(path)
        for state in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({}, path / state)
        (path / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    assert last_complete_checkpoint(tmp_path) == str(path)
    (path / name).unlink()
    if folder:
        (path / name).mkdir()
    else:
        pipe(path / name)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert re.search(rf"checkpoint-2 \({name} .*\); .*checkpoint-1", caplog.text)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_present_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    model = adapted()
    allocator = RankAllocator(model, torch.optim.SGD(model.parameters(), lr=0.1), {"warmup_steps": 1})
    for write in (
        lambda: export_uniform(model, name),
        lambda: save_allocation(allocator, name),
        lambda: compress_adapter(model, average_rank=1, output=name),
    ):
        with pytest.raises(ValueError, match=r"output folder .*empty name; .*'\.'"):
            write()
    with pytest.raises(ValueError, match="adapter's folder .*empty name"):
        compress_adapter(name, average_rank=1, output="smaller")
    assert not list(tmp_path.iterdir())
    assert named_folder(".") == Path(".")


def test_a_user_whom_the_machine_does_not_know() -> None:
    assert expanded("~/x") == Path.home() / "x"
    assert expanded("~no-such-user/x.csv") == Path("~no-such-user/x.csv")
    with pytest.raises(FileNotFoundError, match="file or folder '~no-such-user/x.csv'"):
        parse_custom_data("~no-such-user/x.csv")
