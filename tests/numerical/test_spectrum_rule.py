"""Train wide, cut once: the allocator beside a twin that knows no thin factors, and a case whose answer is known."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocator
from integration.training.loop_case import chain, update

NAMES, START, SCALING, WARMUP, LR = ("first", "second"), 4, 1.5, 6, 0.03


def net() -> nn.Module:
    """Two matrices of other shapes."""
    return chain(first=(5, 9), second=(9, 7))


def wide(rank: int = START, alpha: float = SCALING * START) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(net().double(), LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(NAMES)))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            torch.nn.init.normal_(parameter, std=0.4)  # learned something already, so that the spectra differ
    return model


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(16, 7, generator=generator, dtype=torch.float64)


class Twin:
    """The rule as DESIGN.md writes it, in float64, on dense matrices, with Adam written out."""

    def __init__(self, model: nn.Module, total_rank: int, costs: dict[str, int]) -> None:
        self.net = model.base_model.model
        layers = {name: getattr(self.net, name) for name in NAMES}
        self.W = {name: layer.base_layer.weight.detach().clone() for name, layer in layers.items()}
        self.bias = {name: layer.base_layer.bias.detach().clone() for name, layer in layers.items()}
        self.A = {name: layer.lora_A.default.weight.detach().double() for name, layer in layers.items()}
        self.B = {name: layer.lora_B.default.weight.detach().double() for name, layer in layers.items()}
        zeros = torch.zeros_like
        self.m = {name: (zeros(self.A[name]), zeros(self.B[name])) for name in NAMES}
        self.v = {name: (zeros(self.A[name]), zeros(self.B[name])) for name in NAMES}
        self.total_rank, self.costs, self.t = total_rank, costs, 0

    def delta(self, name: str) -> torch.Tensor:
        return SCALING * self.B[name] @ self.A[name]

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        A = {name: a.requires_grad_() for name, a in self.A.items()}
        B = {name: b.requires_grad_() for name, b in self.B.items()}
        first, second = (self.W[name] + SCALING * B[name] @ A[name] for name in NAMES)
        h = torch.tanh(x @ first.T + self.bias["first"])
        (h @ second.T + self.bias["second"] - y).square().mean().backward()
        self.t += 1
        for name in NAMES:
            for place, factor in enumerate((A[name], B[name])):
                g = factor.grad
                m = 0.9 * self.m[name][place] + 0.1 * g
                v = 0.999 * self.v[name][place] + 0.001 * g**2
                self.m[name] = (*self.m[name][:place], m, *self.m[name][place + 1 :])
                self.v[name] = (*self.v[name][:place], v, *self.v[name][place + 1 :])
                mean, size = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
                after = factor.detach() - LR * mean / (size.sqrt() + 1e-8)
                (self.A if place == 0 else self.B)[name] = after

    def cut(self) -> None:
        decomposed = {name: torch.linalg.svd(self.delta(name), full_matrices=False) for name in NAMES}
        queue = sorted(
            (-((S[i] ** 2) / self.costs[name]).item(), name)
            for name, (_, S, _) in decomposed.items()
            for i in range(START)
        )
        budget, ranks = self.total_rank * sum(self.costs.values()) / len(NAMES), dict.fromkeys(NAMES, 0)
        for _, name in queue:
            if self.costs[name] > budget:
                break
            ranks[name] += 1
            budget -= self.costs[name]
        for name, (U, S, Vh) in decomposed.items():
            r, root = ranks[name], (S / SCALING).sqrt()
            A, B = root[:r, None] * Vh[:r], U[:, :r] * root[:r]
            mix_A, mix_B = torch.linalg.pinv(self.B[name]) @ B, A @ torch.linalg.pinv(self.A[name])
            (m_A, m_B), (v_A, v_B) = self.m[name], self.v[name]
            self.m[name] = (mix_A.T @ m_A, m_B @ mix_B.T)
            self.v[name] = ((mix_A**2).T @ v_A, v_B @ (mix_B**2).T)
            self.A[name], self.B[name] = A, B


@pytest.mark.parametrize("budget", ["rank", "parameters"])
def test_beside_a_twin_across_the_cut(budget: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="glora")
    model, costs = wide(), {"first": 5 + 9, "second": 9 + 7}
    twin = Twin(model, 4, dict.fromkeys(costs, 1) if budget == "rank" else costs)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR)
    fields = dict(rule="spectrum", average_rank=2, budget=budget, warmup_steps=WARMUP)
    allocator = RankAllocator(model, optimizer, fields)
    for step in range(2 * WARMUP):
        x, y = batch(step)
        (model(x) - y).square().mean().backward()
        allocator.step()
        before = {name: twin.delta(name) for name in NAMES}
        optimizer.step()
        optimizer.zero_grad()
        twin.step(x, y)
        if step == WARMUP - 1:
            before = {name: twin.delta(name) for name in NAMES}
            twin.cut()
            dropped = sum((twin.delta(name) - before[name]).square().sum().item() for name in NAMES)
            energy = sum(before[name].square().sum().item() for name in NAMES)
            assert allocator.reallocation.energy_kept == pytest.approx(1 - dropped / energy, rel=1e-4)
            assert dropped / energy > 0.01, "the case must cut something"
            assert re.search(f"kept {1 - dropped / energy:.1%} .*energy", caplog.text)
        assert allocator.ranks == {name: len(twin.A[name]) for name in NAMES}
        for name in NAMES:
            delta = getattr(model.base_model.model, name).get_delta_weight("default")
            torch.testing.assert_close(
                delta.double(), twin.delta(name), rtol=2e-3, atol=2e-4, msg=f"{name}, step {step}"
            )
    assert allocator.ranks["first"] != allocator.ranks["second"]


@pytest.mark.parametrize("fields", [{"average_rank": 2.5}, {"energy": 0.99}], ids=str)
def test_planted_ranks_are_found(fields: dict) -> None:
    """Without noise, and once Δ is learned, the spectrum has exactly the planted directions."""
    torch.manual_seed(1)
    teacher, planted = net(), {"first": 1, "second": 4}
    model = get_peft_model(net(), LoraConfig(r=5, lora_alpha=5, target_modules=list(NAMES)))
    student = model.base_model.model
    with torch.no_grad():
        for name, rank in planted.items():
            base, layer = getattr(teacher, name), getattr(student, name).base_layer
            layer.weight.copy_(base.weight), layer.bias.copy_(base.bias)
            directions = torch.linalg.qr(torch.randn(base.in_features, rank))[0].T
            base.weight += 0.5 * torch.linalg.qr(torch.randn(len(base.weight), rank))[0] @ directions
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=401)
    allocator = RankAllocator(model, optimizer, dict(rule="spectrum", budget="rank", warmup_steps=400, **fields))
    x = torch.randn(256, 5)
    for _ in range(400):
        optimizer.zero_grad()
        (model(x) - teacher(x).detach()).square().mean().backward()
        allocator.step()
        optimizer.step()
        schedule.step()
    assert allocator.ranks == planted
    assert allocator.reallocation.energy_kept > 0.99


def test_several_cuts_come_down_in_equal_ratios() -> None:
    model = wide(rank=5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    fields = dict(average_rank=1, warmup_steps=2, reallocate_every=3, max_reallocations=2)
    allocator, totals = RankAllocator(model, optimizer, dict(rule="spectrum", **fields)), []
    for step in range(10):
        x, y = batch(step)
        (model(x) - y).square().mean().backward()
        update(optimizer, allocator)
        totals.append(sum(allocator.ranks.values()))
    assert totals == [10] + [4] * 3 + [2] * 6, "10 · (2/10)^(1/2) is 4.5 ranks"


def test_a_uniform_cut_gives_every_matrix_its_best_approximation() -> None:
    model = wide()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    optimizer.param_groups[0]["lr"] = 1e-12
    allocator = RankAllocator(model, optimizer, dict(rule="uniform", average_rank=2, warmup_steps=1))
    layers = [getattr(model.base_model.model, name) for name in NAMES]
    before = [layer.get_delta_weight("default").detach() for layer in layers]
    x, y = batch(0)
    (model(x) - y).square().mean().backward()
    allocator.step()
    optimizer.step()
    assert allocator.ranks == dict.fromkeys(NAMES, 2)
    for layer, delta in zip(layers, before):
        error = (layer.get_delta_weight("default") - delta).norm()
        torch.testing.assert_close(error, torch.linalg.svdvals(delta)[2:].norm(), rtol=1e-4, atol=1e-6)
