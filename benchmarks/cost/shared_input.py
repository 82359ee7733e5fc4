"""One product for matrices that share their input: query, key and value, their A stacked into one.

Measured on the three matrices alone, forward and backward, and then not built into glora: see docs/cost.md.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import accelerate_lora
from glora.lora.discovery import find_matrices

CASES = [(512, 384, 8), (256, 768, 8), (256, 768, 64)]  # tokens, d, r


class Stacked(torch.autograd.Function):
    """Fused LoRA for several matrices that share x: h and ∂A are one product each, the gradients of x are added in place."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scaling: float, *parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights, biases, downs, ups = (parameters[k::4] for k in range(4))
        A = torch.cat(downs)
        ranks = [down.shape[0] for down in downs]
        h = torch.mm(A, x.t())
        outputs = [F.linear(x, W, b) for W, b in zip(weights, biases)]
        for y, of_y, B in zip(outputs, h.split(ranks), ups):
            y.addmm_(of_y.t(), B.t(), alpha=scaling)
        ctx.save_for_backward(x, A, h, *weights, *ups)
        ctx.scaling, ctx.ranks = scaling, ranks
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, A, h, *rest = ctx.saved_tensors
        s, ranks, count = ctx.scaling, ctx.ranks, len(gradients)
        weights, ups = rest[:count], rest[count:]
        of_h, of_x, of_ups = torch.empty_like(h), torch.zeros_like(x), []
        for g, W, B, own, of_own in zip(gradients, weights, ups, h.split(ranks), of_h.split(ranks)):
            torch.mm(B.t(), g.t(), out=of_own)
            of_ups.append(torch.addmm(B.t(), own, g, beta=0, alpha=s).t())
            of_x.addmm_(g, W)
        of_x.addmm_(of_h.t(), A, alpha=s)
        of_downs = torch.addmm(A, of_h, x, beta=0, alpha=s).split(ranks)
        return of_x, None, *(t for down, up in zip(of_downs, of_ups) for t in (None, None, down, up))


def measure_shared_input(rounds: int, now: Callable[[], float]) -> list[dict[str, Any]]:
    cases = []
    for tokens, d, rank in CASES:
        ways = _ways(d, rank)
        x = torch.randn(tokens, d, requires_grad=True)
        g = torch.randn(tokens, d)
        order, seconds = list(ways), defaultdict(list)
        for number in range(-20, rounds):
            random.Random(number).shuffle(order)
            for name in order:
                start = now()
                outputs = ways[name](x)
                torch.autograd.backward(outputs, [g] * 3)
                if number >= 0:
                    seconds[name].append(round(now() - start, 7))
        cases.append({"tokens": tokens, "d": d, "rank": rank, "seconds": seconds})
    return cases


def _ways(d: int, rank: int) -> dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]]:
    def three() -> list[nn.Module]:
        torch.manual_seed(0)
        model = nn.ModuleDict({name: nn.Linear(d, d) for name in ("query", "key", "value")})
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=["query", "key", "value"]))
        return [matrix.layer for matrix in find_matrices(model)[1].values()]

    plain, fused = three(), three()
    for layer in fused:
        accelerate_lora(nn.ModuleList([layer]))
    parameters = []
    for layer in three():
        base = layer.base_layer
        parameters += [base.weight, base.bias, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    scaling = plain[0].scaling["default"]
    return {
        "PEFT": lambda x: tuple(layer(x) for layer in plain),
        "accelerated": lambda x: tuple(layer(x) for layer in fused),
        "accelerated, A stacked": lambda x: Stacked.apply(x, scaling, *parameters),
    }
