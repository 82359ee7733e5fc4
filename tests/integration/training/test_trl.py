"""TRL's trainers: supervised fine-tuning and direct preference optimization, with the adapter made by them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from glora import RankAllocationCallback
from integration.training.trainer_case import callback_of, logits_of

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

WARMUP, STEPS = 3, 6
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
BATCH = {"input_ids": torch.arange(5, 13)[None]}
QUESTIONS = [f"how much is {i % 5} plus {i % 3} ?" for i in range(24)]
RIGHT, WRONG = ([f" {i % 5 + i % 3 + off}" for i in range(24)] for off in (0, 1))


def common(base: Path, output: Path, **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of every TRL configuration, and of every TRL trainer."""
    arguments = dict(
        output_dir=str(output),
        max_length=16,
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to="none",
        save_steps=1,
        disable_tqdm=True,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
    )
    callbacks = [RankAllocationCallback(**dict(warmup_steps=WARMUP) | config)]
    return arguments, dict(processing_class=PreTrainedTokenizerFast.from_pretrained(base), callbacks=callbacks)


def sft(base: Path, output: Path, **config: Any) -> Any:
    arguments, shared = common(base, output, **config)
    data = datasets.Dataset.from_dict({"text": [q + a for q, a in zip(QUESTIONS, RIGHT)]})
    model = Qwen3ForCausalLM.from_pretrained(base)
    return trl.SFTTrainer(model, trl.SFTConfig(**arguments), train_dataset=data, peft_config=LORA, **shared)


def dpo(base: Path, output: Path, *, adapted: bool = False, **config: Any) -> Any:
    arguments, shared = common(base, output, **config)
    data = datasets.Dataset.from_dict({"prompt": QUESTIONS, "chosen": RIGHT, "rejected": WRONG})
    model: nn.Module = Qwen3ForCausalLM.from_pretrained(base)
    if adapted:
        torch.manual_seed(1)
        model = get_peft_model(model, LORA)
    peft_config = None if adapted else LORA
    return trl.DPOTrainer(
        model=model, args=trl.DPOConfig(**arguments), train_dataset=data, peft_config=peft_config, **shared
    )


def assert_same_end(one: Any, other: Any) -> None:
    assert callback_of(one).allocator.state_dict() == callback_of(other).allocator.state_dict()
    for (name, p), (_, q) in zip(one.model.named_parameters(), other.model.named_parameters()):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("make", [sft, dpo])
def test_trained_saved_and_resumed(make, tiny_writer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="glora")
    trainer = make(tiny_writer, tmp_path / "run")
    trainer.train()
    allocator = callback_of(trainer).allocator
    assert allocator.reallocation.step == WARMUP
    assert len(allocator.ranks) == 2 * 7
    assert sum(allocator.ranks.values()) == 2 * 7 * 4
    assert len(set(allocator.ranks.values())) > 2
    assert "step 3: " in caplog.text
    assert "gradients changed" not in caplog.text

    live = logits_of(trainer.model, BATCH)
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(tiny_writer), tmp_path / "adapter")
    assert torch.equal(logits_of(loaded, BATCH), live)

    for step in (WARMUP - 1, WARMUP + 1):
        again = make(tiny_writer, tmp_path / f"from-{step}")
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert_same_end(again, trainer)


def test_the_measured_signal(tiny_writer: Path, tmp_path: Path) -> None:
    """Also where the model runs a second time, without its adapter, as the reference of DPO."""
    norms = []
    for config in (dict(signal="delta"), dict(signal="delta_exact", exact_every=1)):
        trainer = dpo(tiny_writer, tmp_path / config["signal"], **config)
        trainer.train()
        norms.append(callback_of(trainer).allocator.norms)
    assert norms[0] != norms[1]
    assert norms[0] == pytest.approx(norms[1], rel=0.7)
    inner = [m for m in trainer.model.modules() if hasattr(m, "lora_A")]
    assert not any(m._forward_hooks or m._forward_pre_hooks for layer in inner for m in layer.modules())


def test_the_reference_adapter_of_dpo_keeps_its_ranks(tiny_writer: Path, tmp_path: Path) -> None:
    """TRL copies the adapter of a PeftModel into the same layers, as the reference."""
    taken_out = "model.layers.0.self_attn.q_proj"
    trainer = dpo(tiny_writer, tmp_path / "run", adapted=True, max_rank={taken_out: 0})
    model = trainer.model

    def reference() -> tuple[dict[str, int], torch.Tensor]:
        model.base_model.set_adapter("ref", inference_mode=True)
        logits = logits_of(model, BATCH)
        model.set_adapter("default")
        return {name: m.r["ref"] for name, m in model.named_modules() if "ref" in getattr(m, "r", {})}, logits

    ranks, before = reference()
    assert set(ranks.values()) == {4}
    trainer.train()
    allocator = callback_of(trainer).allocator
    assert allocator.adapter.name == "default"
    assert allocator.reallocation.step == WARMUP
    assert allocator.ranks[taken_out] == 0
    ranks_after, after = reference()
    assert ranks_after == ranks
    assert torch.equal(after, before)

    again = dpo(tiny_writer, tmp_path / "again", adapted=True, max_rank={taken_out: 0})
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{WARMUP + 1}"))
    assert_same_end(again, trainer)
