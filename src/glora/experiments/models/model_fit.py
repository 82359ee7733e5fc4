"""Whether a model can do what a run asks of it, as far as its name or its configuration tells: known before it is loaded."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glora.experiments.config import RunConfig
from glora.experiments.data.task import Kind
from glora.experiments.models.input_length import longest_input
from glora.experiments.models.registry import MODELS, ModelNotFoundError, find_entry, resolve_model, why_not_loaded
from glora.messages import pluralize

WRITTEN_ANSWERS_ONLY = ("max_new_tokens", "temperature")


def unsupported_settings(config: RunConfig, kind: Kind) -> list[str]:
    """What a run's settings ask of a model or a task that it cannot do, as sentences. Nothing is fetched from the hub.

    Args:
        config: the run's settings.
        kind: of its task.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    return _unfit_kind(config, kind) or ([] if comes_from_hub(config.model) else length_faults(config))


def comes_from_hub(model: str) -> bool:
    """Whether nothing of a model is on this machine but what the hub's cache has.

    Raises:
        ModelNotFoundError: there is no such folder.
    """
    return not Path(resolve_model(model)).is_dir()


def length_faults(config: RunConfig) -> list[str]:
    """Whether `max_length` is more than the model reads, as a sentence.

    Raises:
        ModelNotFoundError: its configuration cannot be had, so neither can the model.
    """
    source = resolve_model(config.model)
    try:
        limit = longest_input(source)
    except Exception as error:
        raise ModelNotFoundError(why_not_loaded(config.model, source, error, "model")) from error
    if limit is None or config.max_length <= limit:
        return []
    return [
        f"max_length={config.max_length} is more than the {pluralize(limit, 'token')} that {config.model} reads; lower it to "
        f"{limit} or less"
    ]


def _unfit_kind(config: RunConfig, kind: Kind) -> list[str]:
    if kind == "classification":
        given = [name for name in WRITTEN_ANSWERS_ONLY if getattr(config, name) is not None]
        return [
            f"{name}={getattr(config, name):g} is for tasks whose answers are written, and {config.task} is none; leave it out"
            for name in given
        ]
    if importlib.util.find_spec("trl") is None:
        return [f"{config.task} is trained by TRL, which is not installed: pip install 'glora[experiments]'"]
    entry = find_entry(config.model)
    reason = None
    if entry is not None and entry.kind == "encoder":
        reason = "is an encoder: it gives labels and writes no text"
    elif entry is None:
        reason = why_it_writes_no_text(_config_of_folder(Path(resolve_model(config.model))))
    if reason is None:
        return []
    writers = [name for name, known in MODELS.items() if known.kind == "causal-lm"]
    return [
        f"model={config.model!r} {reason}, as {config.task} needs it; name a causal model, such as {writers[2]}, or the "
        "folder of one"
    ]


def why_it_writes_no_text(config: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json is no causal language model; None if it is one, or nothing tells.

    transformers would load BERT as one, with a head that was never trained and attention that sees the answer.
    """
    kind = config.get("model_type")
    if not kind:
        return None
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.get("is_encoder_decoder"):
        return (
            f"({kind}) has an encoder and a decoder, and only models that are a decoder alone are trained here to write"
        )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return f"({kind}) is an encoder: it fills in masked words and writes no text"
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"({kind}) is no causal language model that transformers knows"
    return None


def _config_of_folder(folder: Path) -> Mapping[str, Any]:
    """What config.json says; nothing where there is none, as with a model of the hub."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
