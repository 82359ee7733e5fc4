"""Methods that look at training data before the first step: EVA at the activations, LoRA-GA at the gradients."""

from __future__ import annotations

from glora.experiments.methods.base import BOTH, Method

_APPLIED = "glora.experiments.methods.applied.data_initialisation:"

METHODS = (
    Method(
        "eva",
        "Ranks and lora_A from the variance of the activations before training (Paischer et al. 2024).",
        meets=("rank",),
        implementation=_APPLIED + "apply_eva",
        aliases=("explained variance adaptation",),
    ),
    Method(
        "lora_ga",
        "LoRA that starts along the singular vectors of the first gradients (Wang et al. 2024).",
        meets=BOTH,
        implementation=_APPLIED + "apply_lora_ga",
        aliases=("LoRA with gradient approximation",),
    ),
)
