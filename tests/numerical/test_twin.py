"""A slow, readable twin of the whole method, stepped side by side with the fast one across the reallocation.

The twin knows nothing of PEFT, hooks or fused norms. It computes each layer as W·x + s·B·(A·x), takes its norms one
matrix at a time in float64, sorts remainders in a plain loop and runs an Adam of its own.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocationConfig, RankAllocator
from glora.lora.matrix import generator_of
from glora.scoring.sketch_ratios import COLUMNS, _draw
from integration.training.loop_case import chain, update

RANK, ALPHA, LR, BETA1, BETA2, EPS = 3, 6, 2e-2, 0.9, 0.999, 1e-8
WARMUP, STEPS = 12, 30


class Twin:
    """The method as the README states it, one matrix at a time."""

    def __init__(self, net: nn.Module, factors: dict[str, tuple[torch.Tensor, torch.Tensor]], beta: float) -> None:
        self.net, self.beta = net, beta
        self.A = {k: A.clone().double() for k, (A, _) in factors.items()}
        self.B = {k: B.clone().double() for k, (_, B) in factors.items()}
        self.moments = {(f, k): (0.0, 0.0) for f in "AB" for k in factors}
        self.g = dict.fromkeys(factors, 0.0)
        self.s = ALPHA / RANK
        self.t = 0

    def layer(self, k: str, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        base = getattr(self.net, k)
        return x @ base.weight.double().T + base.bias.double() + self.s * (x @ A.T @ B.T) + x @ zero.T

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        A = {k: v.clone().requires_grad_() for k, v in self.A.items()}
        B = {k: v.clone().requires_grad_() for k, v in self.B.items()}
        zero = {k: torch.zeros_like(getattr(self.net, k).weight).double().requires_grad_() for k in A}
        h = torch.tanh(self.layer("a", x.double(), A["a"], B["a"], zero["a"]))
        h = torch.tanh(self.layer("b", h, A["b"], B["b"], zero["b"]))
        out = self.layer("c", h, A["c"], B["c"], zero["c"])
        ((out - y.double()) ** 2).mean().backward()
        if self.t < WARMUP:
            for k in self.g:
                G, d_in = zero[k].grad, A[k].shape[1]
                omega = _draw(f"0/{self.t}/{d_in}", COLUMNS, d_in).double()
                norm = (G @ omega.T).norm().item() * math.sqrt(d_in / COLUMNS)
                self.g[k] = self.beta * self.g[k] + (1 - self.beta) * norm
        self.t += 1
        for f, factors, gradients in (("A", self.A, A), ("B", self.B, B)):
            for k in factors:
                grad = gradients[k].grad
                m, v = self.moments[f, k]
                m, v = BETA1 * m + (1 - BETA1) * grad, BETA2 * v + (1 - BETA2) * grad**2
                self.moments[f, k] = (m, v)
                m_hat, v_hat = m / (1 - BETA1**self.t), v / (1 - BETA2**self.t)
                factors[k] = factors[k] - LR * m_hat / (v_hat.sqrt() + EPS)
        if self.t == WARMUP:
            self.reallocate()

    def ranks(self) -> dict[str, int]:
        total = RANK * len(self.g)
        share = {k: total * g / sum(self.g.values()) for k, g in self.g.items()}
        ranks = {k: int(v) for k, v in share.items()}
        while sum(ranks.values()) < total:
            neediest = sorted(ranks, key=lambda k: (-(share[k] - ranks[k]), k))[0]
            ranks[neediest] += 1
        return ranks

    def reallocate(self) -> None:
        for k, rank in self.ranks().items():
            A, B = self.A[k], self.B[k]
            size = [(A[i].norm() * B[:, i].norm()).item() for i in range(RANK)]
            kept = sorted(sorted(range(RANK), key=lambda i: -size[i])[:rank])
            added = rank - len(kept)
            rows = torch.empty(added, A.shape[1])
            nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator_of("0/0", k)) if added else None
            self.A[k] = torch.cat([A[kept], rows.double()])
            self.B[k] = torch.cat([B[:, kept], torch.zeros(B.shape[0], added).double()], dim=1)
            (mA, vA), (mB, vB) = self.moments["A", k], self.moments["B", k]
            mean_A, mean_B = vA[kept].mean(0, keepdim=True), vB[:, kept].mean(1, keepdim=True)
            self.moments["A", k] = (
                torch.cat([mA[kept], torch.zeros(added, A.shape[1]).double()]),
                torch.cat([vA[kept], mean_A.repeat(added, 1)]),
            )
            self.moments["B", k] = (
                torch.cat([mB[:, kept], torch.zeros(B.shape[0], added).double()], dim=1),
                torch.cat([vB[:, kept], mean_B.repeat(1, added)], dim=1),
            )


def test_side_by_side_for_thirty_steps() -> None:
    torch.manual_seed(1)
    net = chain(a=(6, 10), b=(10, 14), c=(14, 5))
    with torch.no_grad():
        net.b.weight.mul_(3)  # so that the norms, and the ranks, differ much
    twin_net = copy.deepcopy(net)
    model = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["a", "b", "c"]))
    layers = {k: getattr(model.base_model.model, k) for k in "abc"}
    twin = Twin(
        twin_net, {k: (x.lora_A.default.weight.data, x.lora_B.default.weight.data) for k, x in layers.items()}, 0.9
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=WARMUP))

    generator = torch.Generator().manual_seed(7)
    for step in range(STEPS):
        x, y = torch.randn(8, 6, generator=generator), torch.randn(8, 5, generator=generator)
        ((model(x) - y) ** 2).mean().backward()
        update(optimizer, allocator)
        twin.step(x, y)
        assert allocator.norms == pytest.approx(twin.g, rel=1e-4), step
        for k, layer in layers.items():
            A, B = layer.lora_A.default.weight, layer.lora_B.default.weight
            assert A.shape[0] == twin.A[k].shape[0] == allocator.ranks[k]
            torch.testing.assert_close(A.double(), twin.A[k], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(B.double(), twin.B[k], rtol=1e-3, atol=1e-5)
    assert allocator.allocated
    assert allocator.ranks == twin.ranks()
    assert len(set(allocator.ranks.values())) > 1, "the case must have ranks that grow and shrink"
    assert sum(allocator.ranks.values()) == 3 * RANK
