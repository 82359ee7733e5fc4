"""The saved adapter is a plain PEFT LoRA adapter, which a process without glora loads; and the allocation beside it."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers.trainer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer

from glora import RankAllocationCallback, RankAllocator, export_uniform, save_allocation
from glora.export import save_with
from integration.training.trainer_case import (
    TAKEN_OUT,
    callback_of,
    logits_of,
    make_trainer,
    peft_model,
)

STOCK = """
import sys, torch
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "glora":
            raise ImportError("glora must not be needed")
sys.meta_path.insert(0, Refuse())
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
for folder in map(str.strip, sys.stdin):
    base, adapters, batch = torch.load(f"{folder}/request.pt")
    found = []
    for adapter in adapters:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        model = PeftModel.from_pretrained(model, adapter).eval()
        with torch.no_grad():
            found += [model(**batch).logits, model.merge_and_unload()(**batch).logits]
    assert "glora" not in sys.modules
    torch.save(found, f"{folder}/logits.pt")
    print("done", flush=True)
"""


@functools.cache
def stock_process() -> subprocess.Popen[str]:
    """A process that cannot import glora; it ends with the tests."""
    command = [sys.executable, "-W", "error::UserWarning:peft", "-c", STOCK]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def stock_logits(base: Path, batch: dict[str, torch.Tensor], folder: Path, *adapters: Path) -> list[torch.Tensor]:
    """Logits with each adapter, before and after merging, in a process that cannot import glora."""
    torch.save((str(base), list(map(str, adapters)), batch), folder / "request.pt")
    process = stock_process()
    assert process.stdin
    assert process.stdout
    print(folder, file=process.stdin, flush=True)
    assert process.stdout.readline() == "done\n"
    return torch.load(folder / "logits.pt")


def test_stock_peft_loads_it(trainer_of, batch: dict, tiny_deberta: Path, tmp_path: Path) -> None:
    callback = RankAllocationCallback(warmup_steps=6, max_rank={TAKEN_OUT: 0})
    model = peft_model(tiny_deberta, use_rslora=True, exclude_modules=r".*layer\.1\.output\.dense")
    trainer_of(callback, model=model, max_steps=10).train()
    ranks = callback.allocator.ranks
    assert ranks[TAKEN_OUT] == 0
    assert len(set(ranks.values())) > 3

    live = logits_of(model, batch)
    adapter, uniform, padded = (tmp_path / name for name in ("adapter", "uniform", "padded"))
    model.save_pretrained(adapter)
    export_uniform(model, uniform)
    export_uniform(adapter, padded)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (uniform, padded))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one), "from the model and from the files, the same"
    assert {len(t) for key, t in one.items() if "lora_A" in key} == {max(ranks.values())}

    loaded, merged, loaded_uniform, merged_uniform = stock_logits(tiny_deberta, batch, tmp_path, adapter, uniform)
    assert torch.equal(loaded, live)
    torch.testing.assert_close(merged, live, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded_uniform, live, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged_uniform, live, rtol=1e-4, atol=1e-5)


# beside the adapter: allocation.json and a section of the model card


@pytest.fixture(scope="module")
def trained(tiny_deberta: Path, glue_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Eight steps, four of warm-up, with a checkpoint every second step."""
    arguments = dict(max_steps=8, save_strategy="steps", save_steps=2)
    callbacks, output = [RankAllocationCallback(warmup_steps=4)], tmp_path_factory.mktemp("trained")
    trainer = make_trainer(peft_model(tiny_deberta), tiny_deberta, glue_folder, output, callbacks, **arguments)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def allocator(trained: Trainer) -> RankAllocator:
    return callback_of(trained).allocator


def test_checkpoints_carry_the_allocation(trained: Trainer, allocator: RankAllocator) -> None:
    early, late = (Path(trained.args.output_dir, f"checkpoint-{step}") for step in (2, 8))
    assert "2 of 4 steps" in (early / "README.md").read_text()
    early, late = (json.loads((folder / "allocation.json").read_text()) for folder in (early, late))
    assert early["reallocation"] is None
    assert {m["rank"] for m in early["matrices"].values()} == {4}
    assert early["parameters"]["before"] == early["parameters"]["after"]

    assert {n: m["rank"] for n, m in late["matrices"].items()} == allocator.ranks
    assert {n: m["norm"] for n, m in late["matrices"].items()} == allocator.norms
    assert late["parameters"]["after"] == allocator.parameters
    assert late["reallocation"]["step"] == 4
    assert late["config"]["budget"] == "rank"
    assert set(late["versions"]) == {"glora", "peft", "transformers", "torch"}


def test_what_goes_to_the_hub_has_it_too(
    trained: Trainer, allocator: RankAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: dict[str, str] = {}

    class Hub:
        def upload_folder(self, folder_path: str, **kwargs: object) -> None:
            pushed.update({path.name: path.read_text() for path in Path(folder_path).glob("*.json")})

    monkeypatch.setattr(transformers.trainer, "hf_api", Hub)
    monkeypatch.setattr(trained, "hub_model_id", "me/adapter", raising=False)
    trained.push_to_hub()
    assert "adapter_config.json" in pushed
    ranks = {name: matrix["rank"] for name, matrix in json.loads(pushed["allocation.json"])["matrices"].items()}
    assert ranks == allocator.ranks


def test_trainers_own_saving_has_it_too_and_a_copy_is_plain(
    trained: Trainer, allocator: RankAllocator, tmp_path: Path
) -> None:
    trained.save_model(str(tmp_path / "saved"))
    record = json.loads((tmp_path / "saved" / "allocation.json").read_text())
    assert {name: matrix["rank"] for name, matrix in record["matrices"].items()} == allocator.ranks
    assert "## Rank allocation" in (tmp_path / "saved" / "README.md").read_text()
    copy.deepcopy(trained.model).save_pretrained(tmp_path / "copied")
    assert sorted(path.name for path in (tmp_path / "copied").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_model_that_outlives_its_allocator_is_saved_plainly(tmp_path: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(r=2, target_modules=["0"]))
    optimizer = torch.optim.AdamW(model.parameters())
    allocator = RankAllocator(model, optimizer, dict(warmup_steps=2))
    save_with(allocator)
    model.save_pretrained(tmp_path / "with")
    assert (tmp_path / "with" / "allocation.json").is_file()
    del allocator, optimizer
    gc.collect()
    model.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "allocation.json").exists()
    assert (tmp_path / "without" / "adapter_config.json").is_file()


def test_writing_again_replaces_the_section_and_leaves_the_rest_of_the_card(
    trained: Trainer, allocator: RankAllocator, tmp_path: Path
) -> None:
    trained.model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    card.write_bytes(card.read_bytes() + b"\nMy own words about \\1 this model, na\xefve in Latin-1.\n")
    for _ in range(2):
        save_allocation(allocator, tmp_path)
    text = card.read_text(encoding="latin-1")
    assert text.count("## Rank allocation") == 1
    assert text.startswith("---"), "the card's metadata"
    assert "My own words about \\1 this model, naïve in Latin-1.\n" in text
    assert f"{allocator.parameters:,}" in text


def test_a_failing_disk_leaves_the_old_file_whole(
    allocator: RankAllocator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_allocation(allocator, tmp_path)
    before = path.read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_allocation(allocator, tmp_path)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["allocation.json"]
    (tmp_path / ".allocation.json.tmp").symlink_to(tmp_path / "elsewhere")
    save_allocation(allocator, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["allocation.json"], "nothing is written through a link"
