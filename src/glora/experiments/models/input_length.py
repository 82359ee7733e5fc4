"""How many tokens a model reads, as far as its configuration tells: known before any of its weights are loaded."""

from __future__ import annotations

from typing import Any

UNLIMITED = 1_000_000
"""A tokenizer that knows no limit says 10^30 tokens."""

AFTER_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Model types that number positions from the padding token's id + 1, so that RoBERTa reads 512 tokens with 514 positions."""


def longest_input(source: str) -> int | None:
    """What a tokenizer says of its model's longest input, else how many positions the model has; None without a limit.

    Of a model of the hub two small files are fetched.

    Args:
        source: a folder or a hub id.

    Raises:
        Exception: whatever transformers raises where there is no such model, or no network.
    """
    from transformers import AutoConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    config = AutoConfig.from_pretrained(source)
    told = get_tokenizer_config(source).get("model_max_length")
    return int(told) if told and told <= UNLIMITED else positions(config)


def positions(config: Any) -> int | None:
    """How many tokens the positions of a model are for; None where they are relative, as in DeBERTa-v3 and T5, and have no end.

    Learned positions end there. Rotary ones do not, but that is what the model was made for.
    """
    text = config.get_text_config()
    count = getattr(text, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1 or not getattr(text, "position_biased_input", True):
        return None
    return count - (text.pad_token_id or 0) - 1 if text.model_type in AFTER_PADDING else count
