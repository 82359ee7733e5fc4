"""From what is known of each matrix to its score: s_k ∝ (g_k / c_k)^p.

g_k is the averaged gradient norm or, with score="last_singular_value", σ_r(Δ_k), see spectrum.py. The published method
has the gradient norm, c_k = 1 and p = 1. The scores are proportional to what this file gives; a rank budget needs no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.integrations import dequantize_module_weight

Score = Literal["gradient_norm", "last_singular_value"]
SCORES: tuple[str, ...] = get_args(Score)
RelativeTo = Literal["none", "weight", "size"]
RELATIVE_TO: tuple[str, ...] = get_args(RelativeTo)


def shares(
    values: Mapping[str, float],
    layers: Mapping[str, LoraLayer],
    shapes: Mapping[str, tuple[int, int]],
    *,
    exponent: float = 1.0,
    relative_to: RelativeTo = "none",
) -> dict[str, float]:
    """(g_k / c_k)^p, up to a common factor, for every matrix that has a g_k.

    Args:
        values: g_k by name.
        layers: The LoRA layers by name; their base weights are read with relative_to="weight", and dequantised for it.
        shapes: (d_out, d_in) by name.
        exponent: p. A value of 0 stays 0 for every p, so that a matrix without a gradient gets no rank.
        relative_to: c_k: 1 with "none", ‖W_k‖_F with "weight", √(d_in·d_out) with "size".

    Raises:
        ValueError: a base weight is all zero, so nothing is relative to it.
    """
    if relative_to == "weight":
        divisors = {name: _weight_norm(name, layers[name]) for name in values}
    elif relative_to == "size":
        divisors = {name: math.sqrt(math.prod(shapes[name])) for name in values}
    else:
        divisors = dict.fromkeys(values, 1.0)
    relative = {name: value / divisors[name] for name, value in values.items()}
    # In units of the largest, of which no power is too large for a float, and not all are too small.
    largest = max(relative.values(), default=0.0) if exponent != 1 else 1.0
    return {name: (value / largest) ** exponent if value else 0.0 for name, value in relative.items()}


def _weight_norm(name: str, layer: LoraLayer) -> float:
    if isinstance(layer, ParamWrapper):
        weight = layer.get_param()
    else:
        weight = dequantize_module_weight(layer.get_base_layer())
    norm: float = torch.linalg.vector_norm(weight.detach(), dtype=torch.float32).item()
    if norm == 0:
        raise ValueError(f'{name}: the frozen weight is all zero, so no norm is relative to it; use relative_to="none"')
    return norm
