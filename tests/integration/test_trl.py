"""TRL's trainers: supervised fine-tuning and direct preference optimisation, with the adapter made by them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from glora import RankAllocationCallback

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ("the", "fox", "dog", "owl", "sleeps", "in", "barn", "forest", "garden", "today")
WARMUP, STEPS = 3, 6


@pytest.fixture(scope="module")
def tiny_causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("tiny-causal")
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=32
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        initializer_range=0.1,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentence(i: int, *, good: bool = True) -> str:
    subject, place = ("fox", "dog", "owl")[i % 3], ("barn", "forest", "garden")[i % 3 if good else (i + 1) % 3]
    return f"{subject} sleeps in the {place} today"


COMMON = dict(
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
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def sft(base: Path, output: Path, **config: object) -> trl.SFTTrainer:
    data = datasets.Dataset.from_dict({"text": [f"the {sentence(i)}" for i in range(24)]})
    return trl.SFTTrainer(
        model=Qwen3ForCausalLM.from_pretrained(base),
        args=trl.SFTConfig(output_dir=str(output), max_length=16, **COMMON),
        train_dataset=data,
        processing_class=PreTrainedTokenizerFast.from_pretrained(base),
        peft_config=LORA,
        callbacks=[RankAllocationCallback(dict(warmup_steps=WARMUP) | config)],
    )


def dpo(base: Path, output: Path, *, adapted: bool = False, **config: object) -> trl.DPOTrainer:
    data = datasets.Dataset.from_dict(
        {
            "prompt": ["the" for _ in range(24)],
            "chosen": [f" {sentence(i)}" for i in range(24)],
            "rejected": [f" {sentence(i, good=False)}" for i in range(24)],
        }
    )
    model = Qwen3ForCausalLM.from_pretrained(base)
    if adapted:
        torch.manual_seed(1)
        model = get_peft_model(model, LORA)
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(output_dir=str(output), max_length=16, **COMMON),
        train_dataset=data,
        processing_class=PreTrainedTokenizerFast.from_pretrained(base),
        peft_config=None if adapted else LORA,
        callbacks=[RankAllocationCallback(dict(warmup_steps=WARMUP) | config)],
    )


def callback_of(trainer: object) -> RankAllocationCallback:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, RankAllocationCallback))


@pytest.mark.parametrize("make", [sft, dpo])
def test_trained_saved_and_resumed(make, tiny_causal: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="glora")
    trainer = make(tiny_causal, tmp_path / "run")
    trainer.train()
    allocator = callback_of(trainer).allocator
    assert allocator.reallocation.step == WARMUP
    assert len(allocator.ranks) == 2 * 7
    assert sum(allocator.ranks.values()) == 2 * 7 * 4
    assert len(set(allocator.ranks.values())) > 2
    assert "step 3: " in caplog.text
    assert "gradients changed" not in caplog.text

    batch = {"input_ids": torch.arange(3, 11)[None]}
    model = trainer.model.eval()
    with torch.no_grad():
        live = model(**batch).logits
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(Qwen3ForCausalLM.from_pretrained(tiny_causal), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, live)

    for step in (WARMUP - 1, WARMUP + 1):
        again = make(tiny_causal, tmp_path / f"from-{step}")
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert callback_of(again).allocator.state_dict() == allocator.state_dict()
        for (name, p), (_, q) in zip(model.named_parameters(), again.model.named_parameters()):
            assert torch.equal(p, q), name


@pytest.mark.parametrize("make", [sft, dpo])
def test_the_measured_signal(make, tiny_causal: Path, tmp_path: Path) -> None:
    """Also where the model runs a second time, without its adapter, as the reference of DPO."""
    norms = []
    for config in (dict(signal="delta"), dict(signal="delta_exact", exact_every=1)):
        trainer = make(tiny_causal, tmp_path / config["signal"], **config)
        trainer.train()
        norms.append(callback_of(trainer).allocator.norms)
    assert norms[0] != norms[1]
    assert norms[0] == pytest.approx(norms[1], rel=0.5)
    inner = [m for m in trainer.model.modules() if hasattr(m, "lora_A")]
    assert not any(m._forward_hooks or m._forward_pre_hooks for layer in inner for m in layer.modules())


def test_the_reference_adapter_of_dpo_keeps_its_ranks(tiny_causal: Path, tmp_path: Path) -> None:
    """Of a PeftModel TRL copies the adapter, as the reference, into the same layers."""
    batch = {"input_ids": torch.arange(3, 11)[None]}
    taken_out = "model.layers.0.self_attn.q_proj"
    trainer = dpo(tiny_causal, tmp_path / "run", adapted=True, max_rank={taken_out: 0})
    model = trainer.model

    def reference() -> torch.Tensor:
        model.eval()
        model.base_model.set_adapter("ref", inference_mode=True)
        with torch.no_grad():
            logits = model(**batch).logits
        model.set_adapter("default")
        return logits

    ranks = {name: module.r["ref"] for name, module in model.named_modules() if "ref" in getattr(module, "r", {})}
    assert set(ranks.values()) == {4}
    before = reference()
    trainer.train()
    allocator = callback_of(trainer).allocator
    assert allocator.adapter.name == "default"
    assert allocator.reallocation.step == WARMUP
    assert allocator.ranks[taken_out] == 0
    assert ranks == {n: m.r["ref"] for n, m in model.named_modules() if "ref" in getattr(m, "r", {})}
    assert torch.equal(reference(), before)

    again = dpo(tiny_causal, tmp_path / "again", adapted=True, max_rank={taken_out: 0})
    again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{WARMUP + 1}"))
    assert callback_of(again).allocator.state_dict() == allocator.state_dict()
    for (name, p), (_, q) in zip(model.named_parameters(), again.model.named_parameters()):
        assert torch.equal(p, q), name
