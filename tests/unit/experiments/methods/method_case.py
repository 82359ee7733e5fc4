"""A method on a tiny DeBERTa, and batches for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from glora.experiments.config import RunConfig
from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import MethodContext, Schedule
from glora.experiments.methods.registry import METHODS
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.modules import find_head_modules, find_target_modules

STEPS = 12


def adapt(folder: Path, method: str, steps: int = STEPS, **settings: Any) -> AdaptedModel:
    """The method with rank 4 and s = 3 on every encoder matrix."""
    config = RunConfig(model=str(folder), method=method, rank=4, lora_alpha=12, **settings)
    model = classifier(folder, config.seed)
    set_seed(config.seed)
    return METHODS[method].apply(
        MethodContext(
            model=model,
            config=config,
            schedule=Schedule(total_steps=steps, steps_per_epoch=steps // 3),
            target_modules=find_target_modules(model),
            head_modules=find_head_modules(model),
            batches=batches,
        )
    )


def classifier(folder: Path, seed: int = 0) -> Any:
    """The model without a method."""
    return load_classifier(str(folder), num_labels=2, label_names=("no", "yes"), seed=seed)[0]


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Eight examples, every second one with padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 40, (8, 12), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::2, 8:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens[:, 3] % 2}


def batches() -> Iterator[dict[str, torch.Tensor]]:
    """Without end, the same at each call."""
    return map(batch, itertools.count(100))


def logits(model: Any, seed: int = 0) -> torch.Tensor:
    """Logits of one batch, without dropout."""
    with torch.no_grad():
        return model.eval()(**batch(seed)).logits


def adapter_parameters(model: Any) -> int:
    """Counted: what gets gradients and is not of the head."""
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in n)
