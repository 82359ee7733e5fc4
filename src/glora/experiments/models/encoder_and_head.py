"""Where a sequence-classification model's encoder ends and its head begins.

The same division for every architecture:

* encoder: everything up to the last hidden states. Each of its linear layers is adapted, as AdaLoRA
  (arXiv:2303.10512) and QLoRA (arXiv:2305.14314) do; nothing else of it is trained.
* head: everything after the last hidden states, trained in full through PEFT's `modules_to_save`. That
  takes in the pooler (dense + activation on the first token): RoBERTa and DistilBERT have the same layer
  inside their head, DeBERTa's is newly initialised, and BERT's, where the checkpoint has one, was trained for
  another task (next-sentence prediction). So no pooler stays at random values, and none takes ranks from
  the encoder's budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def _encoder(model: torch.nn.Module) -> tuple[str, torch.nn.Module]:
    """Name and module of what computes the hidden states; transformers names it in `base_model_prefix`."""
    prefix = getattr(model, "base_model_prefix", "")
    encoder = getattr(model, prefix, None) if prefix else None
    if encoder is None:
        raise ValueError(
            f"cannot tell the encoder of {type(model).__name__} from its head: it has no submodule "
            f"{prefix or 'named by base_model_prefix'!r}. Name the matrices yourself with target_modules."
        )
    return prefix, encoder


def _has_parameters(module: torch.nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def find_head_modules(model: torch.nn.Module) -> list[str]:
    """Name the modules after the last hidden states, for `LoraConfig(modules_to_save=...)`.

    PEFT by itself trains only modules whose name ends with `classifier` or `score`: DeBERTa's pooler
    and T5's `classification_head` would keep their random values.

    Returns:
        Full names, such as `["bert.pooler", "classifier"]`, in the model's order; none lies within another.

    Raises:
        ValueError: the model does not say which submodule is its encoder.
    """
    prefix, encoder = _encoder(model)
    poolers = [
        f"{prefix}.{name}" for name, module in encoder.named_children() if name == "pooler" and _has_parameters(module)
    ]
    after = [name for name, module in model.named_children() if name != prefix and _has_parameters(module)]
    return poolers + after


def find_target_modules(model: torch.nn.Module) -> list[str]:
    """Name every linear layer of the encoder (nn.Linear, GPT-2's Conv1D), none of the head.

    Returns:
        Full names, such as `bert.encoder.layer.0.attention.self.query`, in the model's order. PEFT takes
        a full name as an exact match.

    Raises:
        ValueError: the model does not say which submodule is its encoder, or that has no linear layer.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    prefix, encoder = _encoder(model)
    heads = tuple(find_head_modules(model))
    names = [
        f"{prefix}.{name}" for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    targets = [n for n in names if not any(n == head or n.startswith(f"{head}.") for head in heads)]
    if not targets:
        raise ValueError(f"the encoder {prefix!r} of {type(model).__name__} has no linear layer to adapt.")
    return targets
