"""Which matrices of a causal language model are adapted: all linear layers of its decoder, and its experts.

Not the output embedding, which is as large as the vocabulary and often tied to the input's; not a vision tower, which sees
nothing of a text; not a router. Experts that are stacked in one parameter (E, d, d) are adapted by PEFT's `target_parameters`,
and all experts of a parameter share a rank.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def find_linear_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the decoder's linear layers, such as `model.layers.0.self_attn.q_proj`, in the model's order.

    Raises:
        ValueError: the decoder has none.
    """
    output = model.get_output_embeddings()
    prefix, decoder = _decoder(model)
    names = [
        f"{prefix}{name}"
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output and not _is_router(name, module)
    ]
    if not names:
        raise ValueError(f"the decoder of {type(model).__name__} has no linear layer to adapt.")
    return names


def find_expert_parameters(model: PreTrainedModel) -> list[str]:
    """Full names of the decoder's stacked experts, such as `model.layers.0.mlp.experts.down_proj`, in the model's order."""
    prefix, decoder = _decoder(model)
    return [
        f"{prefix}{name}"
        for name, parameter in decoder.named_parameters()
        if parameter.dim() == 3 and "experts" in name.split(".")
    ]


def _decoder(model: PreTrainedModel) -> tuple[str, torch.nn.Module]:
    """The decoder, with what names of its modules begin with in the model."""
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return (f"{name}." if name else ""), decoder


def _is_router(name: str, module: torch.nn.Module) -> bool:
    """Llama 4's router is a linear layer that returns two things, which PEFT cannot wrap."""
    return name.rpartition(".")[2] == "router" or "Router" in type(module).__name__
