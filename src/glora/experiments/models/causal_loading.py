"""Loading a causal language model to be trained to write: its weights as they can be trained on, its tokenizer complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, FineGrainedFP8Config, Mxfp4Config

from glora.experiments.models.model_fit import why_it_writes_no_text
from glora.experiments.models.registry import (
    ModelNotFoundError,
    complete_tokenizer,
    quiet_loading,
    resolve_model,
    why_not_loaded,
)
from glora.messages import pluralize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_causal_lm(name: str, *, dtype: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model on the CPU, and its tokenizer.

    Weights in MXFP4 (gpt-oss) or FP8 (DeepSeek), which cannot be trained on, are dequantised.

    Args:
        name: as for `resolve_model`.
        dtype: of its weights.

    Raises:
        ModelNotFoundError: see `resolve_model`; transformers cannot load it, it is an encoder, or the checkpoint lacks weights.
    """
    source = resolve_model(name)
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(source)
            reason = why_it_writes_no_text(config.to_dict())
            if reason is None:
                tokenizer = AutoTokenizer.from_pretrained(source)
                model, found = AutoModelForCausalLM.from_pretrained(
                    source, dtype=dtype, output_loading_info=True, **_dequantised(config)
                )
                reason = _what_is_missing(found)
    except Exception as error:  # a broken file of weights is no OSError
        raise ModelNotFoundError(why_not_loaded(name, source, error, "causal language model")) from error
    if reason is not None:
        raise ModelNotFoundError(f"the model {name!r} {reason}.")
    if model.base_model is model and hasattr(model, "model"):
        # Llama 4's class says that its backbone is called otherwise than it is, and TRL runs the backbone by that name
        model.base_model_prefix = "model"
    complete_tokenizer(model, tokenizer)
    return model, tokenizer


def _what_is_missing(found: dict[str, Any]) -> str | None:
    """Weights that transformers would draw at random, such as the output embedding of a backbone that was saved alone."""
    missing = sorted(found["missing_keys"])
    if not missing:
        return None
    more = f" and {pluralize(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
    return (
        f"has no weights for {missing[0]}{more}; without them it writes at random. Give a whole causal language model"
    )


def _dequantised(config: Any) -> dict[str, Any]:
    """What from_pretrained must be told to give weights that adapters can be trained on."""
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    classes = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    return {"quantization_config": classes[method](dequantize=True)} if method in classes else {}
