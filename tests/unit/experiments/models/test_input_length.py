"""How many tokens a model reads, held against models that are given as many, and one more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from glora.experiments.models.input_length import longest_input, positions

TINY = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}


def tiny(kind: str, **fields: Any) -> Any:
    return AutoConfig.for_model(kind, **{**TINY, "max_position_embeddings": 16, "pad_token_id": 1, **fields})


def reads(config: Any, tokens: int) -> bool:
    model = AutoModel.from_config(config).eval()
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, tokens), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (tiny("bert"), 16),
        (tiny("roberta"), 14),
        (tiny("mpnet"), 14),
        (tiny("gpt2", n_embd=8, n_layer=1, n_head=2), 16),
        (tiny("deberta-v2", position_biased_input=True, **RELATIVE), 16),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_learned_positions_end(config: Any, limit: int) -> None:
    assert positions(config) == limit
    assert reads(config, limit)
    assert not reads(config, limit + 1)


def test_relative_positions_do_not_end() -> None:
    config = tiny("deberta-v2", position_biased_input=False, **RELATIVE)
    assert positions(config) is None
    assert reads(config, 40)
    assert positions(AutoConfig.for_model("t5")) is None


def test_of_a_model_of_images_and_text_the_text_counts() -> None:
    config = AutoConfig.for_model("gemma3")
    assert positions(config) == config.text_config.max_position_embeddings


@pytest.mark.parametrize(("told", "limit"), [(12, 12), (10**30, 14), (None, 14)])
def test_the_tokenizer_speaks_first(told: int | None, limit: int, tmp_path: Any) -> None:
    tiny("roberta").save_pretrained(tmp_path)
    if told is not None:
        (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {told}}}')
    assert longest_input(str(tmp_path)) == limit
