"""Checks that a model fits a run, by its name and its configuration, before any weights are loaded."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from glora.experiments.config import RunConfig
from glora.experiments.data.task import Kind
from glora.experiments.models.registry import find_entry
from glora.experiments.models.resolution import loading, resolve_model
from glora.experiments.models.weights import check_model_files, has_weights
from glora.messages import pluralize

WRITTEN_ANSWERS_ONLY = ("max_new_tokens", "temperature")
UNLIMITED = 1_000_000
"""A tokenizer without a limit says 10^30 tokens."""

XLM_ROBERTA = {"xlm-roberta", "xlm-roberta-xl", "xmod"}
AFTER_PADDING = XLM_ROBERTA | {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
}
"""Model types that number positions from the padding token's id + 1, so that RoBERTa reads 512 tokens with 514 positions."""


def unsupported_settings(config: RunConfig, kind: Kind) -> list[str]:
    """Return the settings that the run's model or task does not support, as sentences. Fetches nothing from the hub.

    Args:
        config: the run's settings.
        kind: of its task.

    Raises:
        ModelNotFoundError: there is no such model, or a file of its folder is broken.
    """
    if comes_from_hub(config.model):
        return _kind_errors(config, kind)
    source = resolve_model(config.model)
    check_model_files(source)
    weights = [] if has_weights(Path(source)) else [f"model={config.model!r} has no weights (*.safetensors, *.bin)"]
    return _kind_errors(config, kind) or length_errors(config) or weights


def comes_from_hub(model: str) -> bool:
    """Return whether this machine has nothing of a model but the hub's cache.

    Raises:
        ModelNotFoundError: there is no such folder.
    """
    return not Path(resolve_model(model)).is_dir()


def length_errors(config: RunConfig) -> list[str]:
    """Report a `max_length` above the longest input, by the tokenizer or else by the number of positions.

    Fetches two small files of a hub model.

    Raises:
        ModelNotFoundError: its configuration is not available, so neither is the model.
    """
    with loading(config.model) as source:
        made_of = AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
        stated = get_tokenizer_config(source).get("model_max_length")
        limit = int(stated) if stated and stated <= UNLIMITED else positions(made_of)
    if limit is None or config.max_length <= limit:
        return []
    return [
        f"max_length={config.max_length} is more than the {pluralize(limit, 'token')} that {config.model} reads; lower it to "
        f"{limit} or less"
    ]


def positions(config: Any) -> int | None:
    """Return the number of tokens that a model has positions for; None where they are relative (DeBERTa-v3, T5).

    Learned positions end there. Rotary positions do not, but the model was made for that length.
    """
    text = config.get_text_config()
    count = getattr(text, "max_position_embeddings", None)
    if not isinstance(count, int) or count < 1 or not getattr(text, "position_biased_input", True):
        return None
    return count - (text.pad_token_id or 0) - 1 if text.model_type in AFTER_PADDING else count


def _kind_errors(config: RunConfig, kind: Kind) -> list[str]:
    if kind == "classification":
        given = [name for name in WRITTEN_ANSWERS_ONLY if getattr(config, name) is not None]
        return [
            f"{name}={getattr(config, name):g} is for written answers, which {config.task} does not have; leave it out"
            for name in given
        ]
    if importlib.util.find_spec("trl") is None:
        return [f"{config.task} is trained by TRL, which is not installed: pip install 'glora[experiments]'"]
    entry = find_entry(config.model)
    reason = None
    if entry is not None and entry.kind == "encoder":
        reason = "is an encoder: it gives labels and writes no text"
    elif entry is None:
        path = Path(resolve_model(config.model)) / "config.json"  # not there for a model of the hub
        reason = why_it_writes_no_text(json.loads(path.read_bytes()) if path.is_file() else {})
    if reason is None:
        return []
    return [
        f"model={config.model!r} {reason}, which {config.task} needs; name a causal model, such as Qwen3-0.6B, or "
        "its folder"
    ]


def why_it_writes_no_text(config: Mapping[str, Any]) -> str | None:
    """Return why a model with this config.json is not a causal language model; None if it is one, or nothing says so.

    transformers would load BERT as one, with a head that was never trained and attention that sees the answer.
    """
    kind = config.get("model_type")
    if not kind:
        return None
    if config.get("is_encoder_decoder"):
        return f"({kind}) has an encoder and a decoder, and only decoder-only models are trained to write"
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return f"({kind}) is an encoder: it fills in masked words and writes no text"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"({kind}) is not a causal language model that transformers knows"
    return None
