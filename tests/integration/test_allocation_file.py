"""What stands beside a saved adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers.trainer

from glora import RankAllocationCallback, RankAllocationConfig, save_allocation
from integration.trainer_case import make_trainer, peft_model


def test_checkpoints_carry_the_allocation(tiny_deberta: Path, glue_folder: Path, tmp_path: Path) -> None:
    callback = RankAllocationCallback(RankAllocationConfig(warmup_steps=4))
    model = peft_model(tiny_deberta)
    arguments = dict(max_steps=8, save_strategy="steps", save_steps=2)
    make_trainer(model, tiny_deberta, glue_folder, tmp_path, [callback], **arguments).train()

    early = json.loads((tmp_path / "checkpoint-2" / "allocation.json").read_text())
    assert early["reallocation"] is None
    assert {m["rank"] for m in early["matrices"].values()} == {4}
    assert early["parameters"]["before"] == early["parameters"]["after"]
    assert "2 of 4 steps; the ranks are still uniform" in (tmp_path / "checkpoint-2" / "README.md").read_text()

    late = json.loads((tmp_path / "checkpoint-8" / "allocation.json").read_text())
    assert {n: m["rank"] for n, m in late["matrices"].items()} == callback.allocator.ranks
    assert {n: m["norm"] for n, m in late["matrices"].items()} == callback.allocator.norms
    assert late["parameters"]["after"] == callback.allocator.parameters
    assert late["reallocation"]["step"] == 4
    assert late["config"]["budget"] == "rank"
    assert set(late["versions"]) == {"glora", "peft", "transformers", "torch"}


def test_what_goes_to_the_hub_has_it_too(
    tiny_deberta: Path, glue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = RankAllocationCallback(RankAllocationConfig(warmup_steps=2))
    trainer = make_trainer(peft_model(tiny_deberta), tiny_deberta, glue_folder, tmp_path, [callback], max_steps=3)
    trainer.train()
    pushed: dict[str, str] = {}

    class Hub:
        def upload_folder(self, folder_path: str, **kwargs: object) -> None:
            pushed.update({path.name: path.read_text() for path in Path(folder_path).glob("*.json")})

    monkeypatch.setattr(transformers.trainer, "hf_api", Hub)
    trainer.hub_model_id = "me/adapter"
    trainer.push_to_hub()
    assert "adapter_config.json" in pushed
    ranks = {name: matrix["rank"] for name, matrix in json.loads(pushed["allocation.json"])["matrices"].items()}
    assert ranks == callback.allocator.ranks


def test_writing_again_replaces_the_section_and_leaves_the_rest_of_the_card(
    tiny_deberta: Path, glue_folder: Path, tmp_path: Path
) -> None:
    callback = RankAllocationCallback(RankAllocationConfig(warmup_steps=2))
    model = peft_model(tiny_deberta)
    make_trainer(model, tiny_deberta, glue_folder, tmp_path, [callback], max_steps=3).train()
    model.save_pretrained(tmp_path / "adapter")
    card = tmp_path / "adapter" / "README.md"
    card.write_text(card.read_text() + "\nMy own words about \\1 this model.\n")
    for _ in range(2):
        save_allocation(callback.allocator, tmp_path / "adapter")
    text = card.read_text()
    assert text.count("## Rank allocation") == 1
    assert text.startswith("---"), "the card's metadata"
    assert "My own words about \\1 this model." in text
    assert f"{callback.allocator.parameters:,}" in text


def test_a_failing_disk_leaves_the_old_file_whole(
    tiny_deberta: Path, glue_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = RankAllocationCallback(RankAllocationConfig(warmup_steps=2))
    make_trainer(peft_model(tiny_deberta), tiny_deberta, glue_folder, tmp_path, [callback], max_steps=3).train()
    path = save_allocation(callback.allocator, tmp_path / "adapter")
    before = path.read_text()

    def full(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        save_allocation(callback.allocator, tmp_path / "adapter")
    assert path.read_text() == before
