"""The scaling of a matrix whose rank changes: held, or falling with the rank.

LoRA's update is s·B·A = s·Σ_i b_i·a_iᵀ. While s is held each further column adds an update of its own, so a matrix with more
columns moves faster. s ∝ 1/√r is rsLoRA's scaling (Kalajdzievski 2023) and s ∝ 1/r is LoRA's own (α held). Each depends on
the rank alone, so it does not matter over which ranks a matrix has come to it.
"""

from __future__ import annotations

from typing import Literal, get_args

RankScaling = Literal["held", "inverse_sqrt", "inverse"]
RANK_SCALINGS: tuple[str, ...] = get_args(RankScaling)
_POWERS: dict[str, float] = {"held": 0.0, "inverse_sqrt": 0.5, "inverse": 1.0}


def scaling_at(rank: int, old_rank: int, old_scaling: float, rule: RankScaling) -> float | None:
    """The scaling at another rank: s·(r/r')^p with p = 0, 1/2 or 1; None where it is held."""
    return None if rule == "held" else old_scaling * (old_rank / rank) ** _POWERS[rule]
