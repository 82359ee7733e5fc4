"""Load a model and its tokenizer: with a classification head, or to write answers. Weights are on the CPU, or left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    FineGrainedFP8Config,
    Mxfp4Config,
)
from transformers.utils import logging

from glora.experiments.config import RunConfig
from glora.experiments.data.task import Kind
from glora.experiments.models.model_fit import UNLIMITED, positions, why_it_writes_no_text
from glora.experiments.models.registry import ModelNotFoundError
from glora.experiments.models.resolution import loading
from glora.experiments.models.weights import check_model_files
from glora.messages import pluralize

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_classifier(
    name: str,
    *,
    num_labels: int,
    label_names: tuple[str, ...] | None = None,
    regression: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in float32 with a classification head, and its tokenizer.

    Weights that the checkpoint lacks, above all the head, are drawn from `seed`: every method gets the same head at one seed.
    torch's global generators keep their states. A head in the checkpoint is kept if its shape fits.

    Args:
        name: as for `resolve_model`.
        num_labels: number of classes; 1 with `regression`.
        label_names: names of the classes in the order of their numbers, written into the config.
        regression: one output, squared error.
        seed: seed of new weights.
        trust_remote_code: whether code that comes with the model may run; without, transformers would ask on the terminal.

    Raises:
        ModelNotFoundError: see `resolve_model`; or transformers cannot load it.
    """
    labels: dict[str, Any] = {"num_labels": num_labels}
    if label_names is not None:
        labels = {
            "id2label": dict(enumerate(label_names)),
            "label2id": {label: i for i, label in enumerate(label_names)},
        }
    with loading(name, "sequence-classification model") as source, _quiet(), torch.random.fork_rng(devices=[]):
        check_model_files(source)
        torch.default_generator.manual_seed(seed)  # devices' generators are not touched
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            problem_type="regression" if regression else "single_label_classification",
            ignore_mismatched_sizes=True,
            **labels,
        )
    _complete_tokenizer(model, tokenizer)
    return model, tokenizer


def load_causal_lm(
    name: str, *, dtype: Any, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, and its tokenizer.

    Weights in MXFP4 (gpt-oss) or FP8 (DeepSeek), which cannot be trained on, are dequantized.

    Args:
        name: as for `resolve_model`.
        dtype: of its weights.
        trust_remote_code: as for `load_classifier`.

    Raises:
        ModelNotFoundError: see `resolve_model`; transformers cannot load it, it is an encoder, or the checkpoint lacks weights.
    """
    with loading(name, "causal language model") as source, _quiet():
        check_model_files(source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if reason := why_it_writes_no_text(config.to_dict()):
            raise ModelNotFoundError(f"the model {name!r} {reason}.")
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **_dequantized(config),
        )
    # transformers draws them at random, such as the output embedding of a backbone saved alone
    if missing := sorted(found["missing_keys"]):
        more = f" and {pluralize(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
        raise ModelNotFoundError(
            f"the model {name!r} has no weights for {missing[0]}{more}, and would write at random; give a whole causal "
            "language model."
        )
    if model.base_model is model and hasattr(model, "model"):
        # Llama 4's class names another backbone than it has, and TRL runs the backbone by that name
        model.base_model_prefix = "model"
    _complete_tokenizer(model, tokenizer)
    return model, tokenizer


def build_skeleton(config: RunConfig, kind: Kind) -> PreTrainedModel:
    """Return the model without weights, with the head of a kind of task. For a model of the hub, fetch config.json.

    Raises:
        ModelNotFoundError: there is no such model, or it is not of this kind.
    """
    auto = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    with loading(config.model) as source, torch.device("meta"):
        made_of = AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
        model: PreTrainedModel = auto.from_config(made_of, trust_remote_code=config.trust_remote_code)
    return model


def _dequantized(config: Any) -> dict[str, Any]:
    """Return the arguments of from_pretrained that give weights on which adapters can be trained."""
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    classes = {"mxfp4": Mxfp4Config, "fp8": FineGrainedFP8Config}
    return {"quantization_config": classes[method](dequantize=True)} if method in classes else {}


def _complete_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add a padding token, and the longest input, where the tokenizer lacks them."""
    if tokenizer.pad_token_id is None:
        # causal models often have no padding token; the attention mask hides its substitute
        tokenizer.pad_token = tokenizer.eos_token
    limit = positions(model.config)
    if limit and tokenizer.model_max_length > UNLIMITED:
        tokenizer.model_max_length = limit
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bar and the report on new weights: a new head is wanted here."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
