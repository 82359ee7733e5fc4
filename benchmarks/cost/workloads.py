"""The models whose steps are measured, and one batch for each: real sizes, random tokens, the weights' values do not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Workload:
    """A model and its batch.

    Attributes:
        title: What tables call it.
        task: PEFT's task type.
        batch, length: Sequences in a batch, and tokens in each.
        build: Makes the model, in float32 on the CPU.
        devices: Where it is measured.
    """

    title: str
    task: str
    batch: int
    length: int
    build: Callable[[], nn.Module]
    devices: tuple[str, ...] = ("cpu", "cuda")


def minilm() -> nn.Module:
    from glora.experiments.models.loading import load_classifier

    return load_classifier("all-MiniLM-L6-v2", num_labels=2)[0]


def deberta_v3_base() -> nn.Module:
    """The sizes and options of microsoft/deberta-v3-base, but for the vocabulary: 128,100 rows that LoRA neither trains nor
    multiplies by would only take 390 MB."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    return DebertaV2ForSequenceClassification(
        DebertaV2Config(
            vocab_size=1000,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            max_position_embeddings=512,
            relative_attention=True,
            max_relative_positions=-1,
            position_buckets=256,
            position_biased_input=False,
            pos_att_type=["p2c", "c2p"],
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            type_vocab_size=0,
            layer_norm_eps=1e-7,
            pooler_hidden_size=768,
            pooler_hidden_act="gelu",
        )
    )


def qwen3_0_6b() -> nn.Module:
    """Qwen3-0.6B's sizes, with a vocabulary of 32,000."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=32_000,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            tie_word_embeddings=True,
        )
    )


def smollm2() -> nn.Module:
    """SmolLM2-135M's sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            tie_word_embeddings=True,
        )
    )


WORKLOADS = {
    "minilm": Workload("all-MiniLM-L6-v2", "SEQ_CLS", 16, 32, minilm, devices=("cpu",)),
    "deberta": Workload("DeBERTa-v3-base's size", "SEQ_CLS", 8, 32, deberta_v3_base, devices=("cpu",)),
    "smollm2": Workload("SmolLM2-135M's size", "CAUSAL_LM", 4, 128, smollm2),
    "qwen3": Workload("Qwen3-0.6B's size", "CAUSAL_LM", 32, 128, qwen3_0_6b, devices=("cuda",)),
}
GPU_BATCH, GPU_LENGTH = 32, 128


def make_batch(workload: Workload, model: nn.Module, device: torch.device) -> dict[str, Any]:
    batch, length = (workload.batch, workload.length) if device.type == "cpu" else (GPU_BATCH, GPU_LENGTH)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, model.config.vocab_size, (batch, length), generator=generator)
    labels = tokens if workload.task == "CAUSAL_LM" else torch.randint(0, 2, (batch,), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    return {name: tensor.to(device) for name, tensor in inputs.items()}
