"""A tiny random model of each family, made from its configuration class: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY, WIDTH, LENGTH, BATCH = 40, 16, 6, 2
IMAGE_TOKEN = VOCABULARY - 1


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: As in docs/support.md.
        model: Name of the transformers class.
        config: Name of its configuration class.
        fields: Fields of the configuration.
        lora: Fields of the LoraConfig; PEFT's default target modules where there are none.
        inputs: "tokens" (labels for each), "sequence" (one label a sequence), "pixels", or "tokens and pixels".
    """

    name: str
    model: str
    config: str
    fields: Mapping[str, Any]
    lora: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = "tokens"

    def base(self) -> nn.Module:
        config = getattr(transformers, self.config)(**self.fields)
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config)
        for parameter in model.parameters():  # DeepSeek's and Llama 4's experts come uninitialised
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.2)
        return model

    def batch(self) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(3)
        tokens = torch.randint(3, VOCABULARY - 2, (BATCH, LENGTH), generator=draw)
        label = torch.tensor([0, 1])
        pixels = torch.randn(BATCH, 3, 8, 8, generator=draw)
        if self.inputs == "pixels":
            return {"pixel_values": pixels, "labels": label}
        if self.inputs == "sequence":
            return {"input_ids": tokens, "labels": label}
        if self.inputs == "tokens and pixels":
            is_image = torch.zeros_like(tokens)
            is_image[:, 1:5] = 1
            tokens = tokens.masked_fill(is_image.bool(), IMAGE_TOKEN)
            return {"input_ids": tokens, "token_type_ids": is_image, "pixel_values": pixels, "labels": tokens.clone()}
        return {"input_ids": tokens, "labels": tokens.clone()}


SMALL = dict(hidden_size=WIDTH, intermediate_size=24, num_attention_heads=2)
TEXT = dict(vocab_size=VOCABULARY, max_position_embeddings=32, pad_token_id=0, num_hidden_layers=2)
DECODER = SMALL | TEXT | dict(num_key_value_heads=1, head_dim=8, bos_token_id=1, eos_token_id=2)
LINEAR = {"target_modules": "all-linear"}
EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
GEMMA = DECODER | dict(query_pre_attn_scalar=8, sliding_window=4)
DEEPSEEK = DECODER | dict(
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_rope_head_dim=4,
    head_dim=4,
    qk_nope_head_dim=4,
    v_head_dim=8,
    num_key_value_heads=2,
    moe_intermediate_size=12,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
)


def _encoder(name: str, kind: str, lora: Mapping[str, Any], fields: Mapping[str, Any]) -> Family:
    fields = SMALL | TEXT | dict(initializer_range=0.2) | fields
    lora = {"task_type": "SEQ_CLS"} | lora
    return Family(name, f"{kind}ForSequenceClassification", f"{kind}Config", fields, lora, "sequence")


def _decoder(name: str, kind: str, lora: Mapping[str, Any], fields: Mapping[str, Any], config: str = "") -> Family:
    lora = {"task_type": "CAUSAL_LM"} | lora
    return Family(name, f"{kind}ForCausalLM", config or f"{kind}Config", DECODER | fields, lora)


DEBERTA = dict(relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True)
DISTILBERT = dict(vocab_size=VOCABULARY, dim=WIDTH, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=32)
DISTILBERT_TARGETS = ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]
MODERNBERT = dict(global_attn_every_n_layers=2, local_attention=4, cls_token_id=1, sep_token_id=2)
T5 = dict(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
IMAGES = SMALL | dict(image_size=8, patch_size=4, num_hidden_layers=1)
GEMMA_IMAGES = dict(text_config=GEMMA, vision_config=IMAGES | dict(vision_use_head=False), mm_tokens_per_image=4)
MIXTURE = dict(num_experts_per_tok=2, moe_intermediate_size=12)
LLAMA4 = dict(num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1, intermediate_size_mlp=24)

FAMILIES = [
    _encoder(
        "DeBERTa-v2, DeBERTa-v3",
        "DebertaV2",
        LINEAR,
        DEBERTA | dict(pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0),
    ),
    _encoder("BERT", "Bert", {}, {}),
    Family(
        "DistilBERT",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        DISTILBERT | dict(pad_token_id=0, initializer_range=0.2),
        {"task_type": "SEQ_CLS", "target_modules": DISTILBERT_TARGETS},
        "sequence",
    ),
    _encoder("RoBERTa", "Roberta", LINEAR, dict(pad_token_id=1)),
    _encoder("ModernBERT", "ModernBert", LINEAR, MODERNBERT | dict(bos_token_id=1, eos_token_id=2)),
    Family("T5", "T5ForConditionalGeneration", "T5Config", T5, {"task_type": "SEQ_2_SEQ_LM"}),
    Family(
        "ViT",
        "ViTForImageClassification",
        "ViTConfig",
        IMAGES | dict(initializer_range=0.2),
        LINEAR | {"modules_to_save": ["classifier"]},
        "pixels",
    ),
    _decoder("Qwen3", "Qwen3", {}, {}),
    _decoder("Qwen3-MoE", "Qwen3Moe", LINEAR, MIXTURE | dict(num_experts=4)),
    _decoder("Gemma 3", "Gemma3", {}, GEMMA, "Gemma3TextConfig"),
    Family(
        "Gemma 3 with images",
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        GEMMA_IMAGES | dict(image_token_id=IMAGE_TOKEN),
        LINEAR | {"task_type": "CAUSAL_LM"},
        "tokens and pixels",
    ),
    _decoder(
        "Llama 4",
        "Llama4",
        LINEAR | EXPERTS | {"exclude_modules": ["router"]},
        LLAMA4 | dict(attention_chunk_size=4),
        "Llama4TextConfig",
    ),
    _decoder("DeepSeek-V3", "DeepseekV3", LINEAR, DEEPSEEK),
    _decoder(
        "DeepSeek-V3.2",
        "DeepseekV32",
        {"target_modules": ["q_b_proj", "kv_b_proj", "o_proj"]} | EXPERTS,
        DEEPSEEK | dict(index_topk=4, index_head_dim=8, index_n_heads=2),
    ),
    _decoder("gpt-oss", "GptOss", LINEAR | EXPERTS, dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=4)),
]
