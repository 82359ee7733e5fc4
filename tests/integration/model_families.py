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
        inputs: "tokens" (labels for each), "sequence" (one label a sequence), "pixels", or "tokens and pixels".
        lora: Fields of the LoraConfig; PEFT's default target modules where there are none.
        how: What the table says.
    """

    name: str
    model: str
    config: str
    fields: Mapping[str, Any]
    inputs: str = "tokens"
    lora: Mapping[str, Any] = field(default_factory=dict)
    how: str = ""

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


def _decoder(**fields: Any) -> dict[str, Any]:
    return (
        dict(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        | fields
    )


def _encoder(**fields: Any) -> dict[str, Any]:
    return (
        dict(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            pad_token_id=0,
            initializer_range=0.2,
        )
        | fields
    )


LINEAR = {"target_modules": "all-linear"}
CLASSIFY, CAUSAL = {"task_type": "SEQ_CLS"}, {"task_type": "CAUSAL_LM"}
EXPERTS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
GEMMA = _decoder(query_pre_attn_scalar=8, sliding_window=4)
LATENT_ATTENTION = dict(
    num_hidden_layers=2,
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

FAMILIES = [
    Family(
        "DeBERTa-v2, DeBERTa-v3",
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _encoder(
            relative_attention=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        ),
        "sequence",
        CLASSIFY | LINEAR,
    ),
    Family("BERT", "BertForSequenceClassification", "BertConfig", _encoder(), "sequence", CLASSIFY),
    Family(
        "DistilBERT",
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        dict(vocab_size=VOCABULARY, dim=WIDTH, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=32)
        | dict(pad_token_id=0, initializer_range=0.2),
        "sequence",
        CLASSIFY | {"target_modules": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]},
    ),
    Family(
        "RoBERTa",
        "RobertaForSequenceClassification",
        "RobertaConfig",
        _encoder(pad_token_id=1),
        "sequence",
        CLASSIFY | LINEAR,
    ),
    Family(
        "ModernBERT",
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _encoder(global_attn_every_n_layers=2, local_attention=4, cls_token_id=1, sep_token_id=2)
        | dict(bos_token_id=1, eos_token_id=2),
        "sequence",
        CLASSIFY | LINEAR,
    ),
    Family(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        dict(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
        ),
        "tokens",
        {"task_type": "SEQ_2_SEQ_LM"},
    ),
    Family(
        "ViT",
        "ViTForImageClassification",
        "ViTConfig",
        dict(image_size=8, patch_size=4, hidden_size=WIDTH, intermediate_size=24)
        | dict(num_hidden_layers=1, num_attention_heads=2, initializer_range=0.2),
        "pixels",
        LINEAR | {"modules_to_save": ["classifier"]},
    ),
    Family("Qwen3", "Qwen3ForCausalLM", "Qwen3Config", _decoder(), lora=CAUSAL),
    Family(
        "Qwen3-MoE",
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _decoder(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12),
        lora=CAUSAL | LINEAR,
        how='"all-linear" takes experts and router too, as `target_parameters`',
    ),
    Family("Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA, lora=CAUSAL),
    Family(
        "Gemma 3 with images",
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        dict(
            text_config=GEMMA,
            vision_config=dict(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
            | dict(image_size=8, patch_size=4, vision_use_head=False),
            mm_tokens_per_image=4,
            image_token_id=IMAGE_TOKEN,
        ),
        "tokens and pixels",
        CAUSAL | LINEAR,
    ),
    Family(
        "Llama 4",
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        _decoder(num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=1)
        | dict(intermediate_size_mlp=24, attention_chunk_size=4),
        lora=CAUSAL | LINEAR | EXPERTS | {"exclude_modules": ["router"]},
        how="experts by `target_parameters`; exclude the router, which PEFT cannot wrap",
    ),
    Family(
        "DeepSeek-V3",
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        _decoder(**LATENT_ATTENTION),
        lora=CAUSAL | LINEAR,
        how='"all-linear" takes experts and router too, as `target_parameters`',
    ),
    Family(
        "DeepSeek-V3.2",
        "DeepseekV32ForCausalLM",
        "DeepseekV32Config",
        _decoder(index_topk=4, index_head_dim=8, index_n_heads=2, **LATENT_ATTENTION),
        lora=CAUSAL | {"target_modules": ["q_b_proj", "kv_b_proj", "o_proj"]} | EXPERTS,
        how="experts by `target_parameters`",
    ),
    Family(
        "gpt-oss",
        "GptOssForCausalLM",
        "GptOssConfig",
        _decoder(num_local_experts=4, num_experts_per_tok=2, sliding_window=4),
        lora=CAUSAL | LINEAR | EXPERTS,
        how="experts by `target_parameters`",
    ),
]
