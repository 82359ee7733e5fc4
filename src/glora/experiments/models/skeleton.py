"""A model without weights: what it is made of, from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from glora.experiments.config import RunConfig
from glora.experiments.models.registry import ModelNotFoundError, resolve_model, why_not_loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from glora.experiments.data.task import Kind


def build_skeleton(config: RunConfig, kind: Kind) -> PreTrainedModel:
    """Return the model on torch's meta device, with the head of a kind of task. For a model of the hub, fetch config.json.

    Raises:
        ModelNotFoundError: there is no such model, or it is not of this kind.
    """
    source = resolve_model(config.model)
    auto = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    try:
        made_of = AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
        with torch.device("meta"):
            model: PreTrainedModel = auto.from_config(made_of, trust_remote_code=config.trust_remote_code)
    except Exception as error:
        raise ModelNotFoundError(why_not_loaded(config.model, source, error, "model")) from error
    return model


def largest_ranks(model: PreTrainedModel, names: Sequence[str]) -> dict[str, int]:
    """Return min(d_in, d_out) of each matrix, or of each expert in a stack: a larger rank cannot be used."""
    parameters = dict(model.named_parameters())
    matrices = {name: parameters.get(f"{name}.weight", parameters.get(name)) for name in names}
    return {name: min(matrix.shape[-2:]) for name, matrix in matrices.items() if matrix is not None}
