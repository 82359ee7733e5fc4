"""LoRA with the same rank in every matrix, and the methods that differ from it by one argument of PEFT."""

from __future__ import annotations

from collections.abc import Mapping

from glora.experiments.config import RunConfig
from glora.experiments.methods.base import BOTH, Method
from glora.messages import pluralize

_APPLIED = "glora.experiments.methods.applied.uniform_lora:"


def unsupported_total(config: RunConfig, limits: Mapping[str, int]) -> list[str]:
    """Return an error if a total_rank has less than one rank for each matrix, or more than they can use."""
    total, most = config.allocation.total_rank, sum(limits.values())
    if total is None or len(limits) <= total <= most:
        return []
    return [f"total_rank={total} must be from {len(limits):,} to {most:,} for {pluralize(len(limits), 'matrix')}"]


METHODS = (
    Method(
        "lora",
        "The same rank in every matrix (Hu et al. 2021).",
        meets=BOTH,
        implementation=_APPLIED + "apply_lora",
        adapts_experts=True,
        variant_settings=frozenset({"total_rank"}),
        check_matrices=unsupported_total,
    ),
    Method(
        "rslora",
        "LoRA scaled by alpha / √rank in the place of alpha / rank (Kalajdzievski 2023).",
        meets=BOTH,
        implementation=_APPLIED + "apply_rslora",
        adapts_experts=True,
        aliases=("rank-stabilized LoRA", "rank-stabilised LoRA"),
    ),
    Method(
        "dora",
        "LoRA of a weight's direction, and its magnitude: d_out parameters more a matrix (Liu et al. 2024).",
        meets=("rank",),
        implementation=_APPLIED + "apply_dora",
        aliases=("weight-decomposed LoRA", "weight-decomposed low-rank adaptation"),
    ),
    Method(
        "pissa",
        "LoRA that starts from the largest singular values of each weight, taken out of it (Meng et al. 2024).",
        meets=BOTH,
        implementation=_APPLIED + "apply_pissa",
        aliases=("principal singular values and singular vectors adaptation",),
    ),
    Method(
        "lora_plus",
        "LoRA whose B learns at 16 times the learning rate of A (Hayou et al. 2024).",
        meets=BOTH,
        implementation=_APPLIED + "apply_lora_plus",
        adapts_experts=True,
        aliases=("LoRA+",),
    ),
)
