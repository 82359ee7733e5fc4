"""A model with a method applied: what is trained, and what it can tell about its ranks.

An experiment asks every method the same few questions (ranks at the start and at the end, parameters, averaged norms,
when the ranks changed). `AdaptedModel` answers them for any method whose layers are PEFT's LoRA layers, and for a model that
has none; a method that knows more (AdaLoRA's masks, GLoRA's norms) overrides what it must.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from glora.lora.discovery import base_model, matrix_name


class AdaptedModel:
    """A model with adapters, as uniform LoRA leaves it: the ranks never change.

    Attributes:
        model: the PEFT model to train.
        callbacks: what the method wants called during training.
        module_shapes: module name -> (d_out, d_in), of every adapted matrix; of E stacked experts (E·d_out, E·d_in), because
            one rank of theirs costs E·(d_out + d_in).
        initial_ranks: module name -> rank before training.
        preparation_seconds: what the method took before the first step, beyond putting adapters of one rank on the model.
            It counts as training time.
    """

    preparation_seconds = 0.0

    def __init__(self, model: nn.Module, callbacks: Sequence[TrainerCallback] = ()) -> None:
        self.model = model
        self.callbacks = tuple(callbacks)
        layers = adapted_layers(model)
        self.module_shapes = {name: _shape(layer) for name, layer in layers.items()}
        self.initial_ranks = {name: _rank(layer) for name, layer in layers.items()}

    def ranks(self) -> dict[str, int]:
        """Module name -> rank now; 0 where the adapter has been taken out."""
        layers = adapted_layers(self.model)
        return {name: _rank(layers[name]) if name in layers else 0 for name in self.initial_ranks}

    def trainable_parameters(self) -> int:
        """Parameters that get gradients now, the head included."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def adapter_parameters(self) -> int:
        """Parameters of the adapters alone, now: Σ r_k · (d_out + d_in)."""
        return sum(rank * sum(self.module_shapes[name]) for name, rank in self.ranks().items())

    def make_optimizer(self, arguments: TrainingArguments) -> torch.optim.Optimizer | None:
        """The method's own optimizer; None for the one that Trainer makes."""
        return None

    def averaged_norms(self) -> dict[str, float] | None:
        """Module name -> g_k while norms are being averaged; None for a method that averages none."""
        return None

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps over which norms are averaged; 0 for a method that averages none."""
        return 0

    @property
    def reallocated_at(self) -> int | None:
        """Optimizer steps made when the ranks took their final values; None if they never changed."""
        return None


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """LoRA layers (AdaLoRA's among them) by module name, relative to the base model as in PEFT's patterns."""
    return {
        matrix_name(name, layer): layer
        for name, layer in base_model(model).named_modules()
        if isinstance(layer, LoraLayer)
    }


def _experts(layer: Any) -> int:
    return int(layer.num_experts) if isinstance(layer, ParamWrapper) else 1


def _shape(layer: Any) -> tuple[int, int]:
    return _experts(layer) * layer.out_features, _experts(layer) * layer.in_features


def _rank(layer: Any) -> int:
    """The rank of the layer's one adapter, from the shape of A: the layer's own `r` could be out of date."""
    (factor,) = layer.lora_A.values()
    weight = factor if isinstance(factor, torch.Tensor) else factor.weight
    return int(weight.shape[0]) // _experts(layer)
