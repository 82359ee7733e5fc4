"""Which matrices of a causal language model are adapted: all linear layers of its decoder, and its experts.

Not the output embedding, which is as large as the vocabulary and often tied to the input's; not a vision tower, which sees
nothing of a text; not what chooses, and so gets no gradient from what is chosen or cannot be wrapped: a router, the indexer of
DeepSeek-V3.2. Experts that are stacked in one parameter (E, d, d) are adapted by PEFT's `target_parameters`, and all experts of
a parameter share a rank.

In DeepSeek-V3 and its like PEFT takes every `gate_proj`, `up_proj` and `down_proj` for a single expert of an older checkpoint,
even in layers that have no experts. There these layers, and the shared experts, are left as they are.
"""

from __future__ import annotations

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
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
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output and not _chooses(name, module)
    ]
    endings = {name.rpartition(".")[2] for name in names}
    experts = {ending for ending in endings if _is_taken_for_experts(ending, model)}
    names = [name for name in names if name.rpartition(".")[2] not in experts]
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


def _chooses(name: str, module: torch.nn.Module) -> bool:
    return bool({"router", "indexer"} & set(name.split("."))) or "Router" in type(module).__name__


def _is_taken_for_experts(ending: str, model: PreTrainedModel) -> bool:
    """Whether PEFT would adapt stacked experts if a layer of this name were to be adapted."""
    config = LoraConfig(target_modules=[ending])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # gate_proj without up_proj: they are one parameter
        return True
    return ending not in (config.target_modules or ())
