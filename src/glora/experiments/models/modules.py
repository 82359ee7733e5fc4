"""The matrices of a model that are adapted, and the head that is trained in full, for every architecture.

Sequence classification:

* encoder: everything up to the last hidden states. Each of its linear layers is adapted, as in AdaLoRA (arXiv:2303.10512) and
  QLoRA (arXiv:2305.14314); nothing else of it is trained.
* head: everything after the last hidden states, trained in full through PEFT's `modules_to_save`. This includes the pooler:
  RoBERTa and DistilBERT have the same layer inside their head, DeBERTa's is newly initialized, and BERT's was trained for
  another task (next-sentence prediction). So no pooler keeps random values or takes ranks from the encoder's budget.

Causal language models: all linear layers of the decoder, and its experts. Not adapted are the output embedding, which is as
large as the vocabulary and often tied to the input's; a vision tower, which sees nothing of a text; routers and the indexer of
DeepSeek-V3.2, which choose and so get no gradient or cannot be wrapped. Stacked experts, one parameter (E, d, d), are adapted
by PEFT's `target_parameters`; all experts of a parameter share a rank. In DeepSeek-V3 and similar models PEFT takes every
`gate_proj`, `up_proj` and `down_proj` for one expert of an older checkpoint, even in layers without experts; those layers and
the shared experts are not adapted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from glora.messages import did_you_mean


def choose_modules(names: Sequence[str], wanted: Sequence[str] | None, *, what: str) -> list[str]:
    """Return the names that are or end with a wanted name, in their order; all if nothing is wanted.

    Args:
        names: full names, such as `bert.encoder.layer.0.attention.self.query`.
        wanted: full names, or endings of whole parts, such as `query` or `self.query`.
        what: a noun for each of them, for the message.

    Raises:
        ValueError: a wanted name matches none; names the nearest.
    """
    if wanted is None:
        return list(names)
    for suffix in wanted:
        if not any(_ends_with(name, suffix) for name in names):
            endings = sorted({".".join(name.split(".")[-k:]) for name in names for k in (1, 2)})
            hint = did_you_mean(suffix, endings) or f"; use one of {', '.join(endings)}"
            raise ValueError(f"target_modules: {suffix!r} matches no {what}{hint}")
    return [name for name in names if any(_ends_with(name, suffix) for suffix in wanted)]


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def largest_ranks(model: torch.nn.Module, names: Sequence[str]) -> dict[str, int]:
    """Return min(d_in, d_out) of each matrix, or of each expert in a stack: a larger rank cannot be used."""
    parameters = dict(model.named_parameters())
    matrices = {name: parameters.get(f"{name}.weight", parameters.get(name)) for name in names}
    return {name: min(matrix.shape[-2:]) for name, matrix in matrices.items() if matrix is not None}


def find_head_modules(model: torch.nn.Module) -> list[str]:
    """Name the modules after the last hidden states, for `LoraConfig(modules_to_save=...)`.

    PEFT by itself trains only modules whose name ends with `classifier` or `score`: DeBERTa's pooler and T5's
    `classification_head` would keep their random values.

    Returns:
        Full names, such as `["bert.pooler", "classifier"]`, in the model's order; none is within another.

    Raises:
        ValueError: the model does not say which submodule is its encoder.
    """
    prefix, encoder = _encoder(model)
    named = [(f"{prefix}.{name}", module) for name, module in encoder.named_children() if name == "pooler"]
    named += [(name, module) for name, module in model.named_children() if name != prefix]
    return [name for name, module in named if next(module.parameters(), None) is not None]


def find_target_modules(model: torch.nn.Module) -> list[str]:
    """Name every linear layer of the encoder (nn.Linear, GPT-2's Conv1D), none of the head.

    Returns:
        Full names, such as `bert.encoder.layer.0.attention.self.query`, in the model's order; PEFT matches them exactly.

    Raises:
        ValueError: the model does not say which submodule is its encoder, or the encoder has no linear layer.
    """
    prefix, encoder = _encoder(model)
    heads = tuple(f"{head}." for head in find_head_modules(model))
    names = [
        f"{prefix}.{name}" for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    targets = [name for name in names if not f"{name}.".startswith(heads)]
    if not targets:
        raise ValueError(
            f"the encoder {prefix!r} of {type(model).__name__} has no linear layer to adapt; choose another model"
        )
    return targets


def _encoder(model: torch.nn.Module) -> tuple[str, torch.nn.Module]:
    """Return name and module of the encoder, which transformers names in `base_model_prefix`."""
    prefix = getattr(model, "base_model_prefix", "")
    encoder = getattr(model, prefix, None) if prefix else None
    if encoder is None:
        raise ValueError(
            f"cannot tell the encoder of {type(model).__name__} from its head: it has no submodule "
            f"{prefix or 'named by base_model_prefix'!r}. Name the matrices yourself with target_modules."
        )
    return prefix, encoder


def find_linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the full names of the decoder's linear layers, such as `model.layers.0.self_attn.q_proj`, in the model's order.

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
        raise ValueError(f"the decoder of {type(model).__name__} has no linear layer to adapt; choose another model")
    return names


def find_expert_parameters(model: PreTrainedModel) -> list[str]:
    """Return the full names of the decoder's stacked experts, such as `model.layers.0.mlp.experts.down_proj`."""
    prefix, decoder = _decoder(model)
    return [
        f"{prefix}{name}"
        for name, parameter in decoder.named_parameters()
        if parameter.dim() == 3 and "experts" in name.split(".")
    ]


def _decoder(model: PreTrainedModel) -> tuple[str, torch.nn.Module]:
    """Return the prefix of its modules' names, and the decoder."""
    decoder = model.get_decoder()
    name = next((name for name, module in model.named_modules() if module is decoder), "")
    return (f"{name}." if name else ""), decoder


def _chooses(name: str, module: torch.nn.Module) -> bool:
    return bool({"router", "indexer"} & set(name.split("."))) or "Router" in type(module).__name__


def _is_taken_for_experts(ending: str, model: PreTrainedModel) -> bool:
    """Return whether PEFT would adapt stacked experts in place of layers of this name."""
    config = LoraConfig(target_modules=[ending])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # gate_proj without up_proj: they are one parameter
        return True
    return ending not in (config.target_modules or ())
