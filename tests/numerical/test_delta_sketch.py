"""The measured norms: what is read in each mode of training, and the ranks at the end of a warm-up."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from glora import RankAllocationConfig, RankAllocator, accelerate_lora, allocate_ranks
from glora.scoring.sketch_ratios import COLUMNS, measured_steps
from integration.training.loop_case import update
from numerical.test_delta_exact import (
    CASES,
    allocator_for,
    backward,
    batches_of,
    exact_gradients,
    factors,
    hooks,
    layers,
    lora,
    norms,
)

WARMUP = 3  # at β = 0 all of it is measured


def by_definition(G: torch.Tensor, omega: torch.Tensor) -> float:
    """√(d_in/k)·‖G·Ω‖."""
    return float((G @ omega.T).norm() * (G.shape[1] / len(omega)) ** 0.5)


def omegas(allocator: RankAllocator) -> list[torch.Tensor]:
    return [watch._omega for watch in allocator._recorder.ratios._watches.values()]


def steps(model: nn.Module, allocator: RankAllocator, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for step in numbers:
        backward(model, batches_of(step, 1), step)
        update(optimizer, allocator)


SIGNALS = pytest.mark.parametrize(
    ("signal", "accelerated"),
    [("delta", False), ("delta", True), ("delta_exact", False)],
    ids=["sketched", "sketched, accelerated", "exact"],
)


def start(signal: str, accelerated: bool, **fields: Any) -> tuple[nn.Module, RankAllocator, torch.optim.Optimizer]:
    model = lora(**fields)
    if accelerated:
        accelerate_lora(model)
    return model, *allocator_for(model, signal=signal, beta=0.0, warmup_steps=WARMUP)


def norms_of(gradients: list[torch.Tensor], allocator: RankAllocator) -> torch.Tensor:
    if allocator.config.signal == "delta_exact":
        return torch.stack([G.norm() for G in gradients])
    return torch.tensor([by_definition(*pair) for pair in zip(gradients, omegas(allocator))])


@SIGNALS
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_norms_of_the_whole_step(case: dict, signal: str, accelerated: bool) -> None:
    count, dropout, scale, clip = (case.get(key, 0) for key in ("count", "dropout", "scale", "clip"))
    model, allocator, optimizer = start(signal, accelerated, dropout=dropout, reentrant=case.get("reentrant"))
    seen = []
    for step in range(3):
        batches = batches_of(step, count or 1)
        expected = norms_of(exact_gradients(model, batches, dropout, step), allocator)
        seen.append(omegas(allocator))
        backward(model, batches, seed=step, scale=scale or 1.0)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= scale or 1.0  # what a gradient scaler's unscale_ does
        if clip:
            total = nn.utils.clip_grad_norm_(model.parameters(), clip)
            expected *= (clip / (total + 1e-6)).clamp(max=1.0)
        allocator.step()
        read = allocator._recorder.pending
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(read, expected, rtol=2e-4, atol=0)
    if signal == "delta":
        for one, later in pairwise(seen):
            assert all(not torch.equal(a, b) for a, b in zip(one, later)), "Ω is new each step"
        torch.testing.assert_close(seen[0][0].abs(), torch.full((COLUMNS, 6), 6**-0.5))


@SIGNALS
def test_bfloat16_autocast(signal: str, accelerated: bool) -> None:
    model, allocator, optimizer = start(signal, accelerated)
    for step in range(2):
        expected = norms_of(exact_gradients(model, batches_of(step, 2), 0.0, step), allocator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            backward(model, batches_of(step, 2), step)
        update(optimizer, allocator)
        torch.testing.assert_close(norms(allocator), expected, rtol=0.03, atol=0)


def test_bfloat16_factors() -> None:
    model = lora().bfloat16()
    allocator, optimizer = allocator_for(model, signal="delta", beta=0.0, warmup_steps=WARMUP)
    gradients = exact_gradients(model, [b.bfloat16() for b in batches_of(0, 1)], 0.0, 0)
    expected = torch.tensor([by_definition(G.float(), omega) for G, omega in zip(gradients, omegas(allocator))])
    backward(model, [b.bfloat16() for b in batches_of(0, 1)], 0)
    update(optimizer, allocator)
    torch.testing.assert_close(norms(allocator), expected, rtol=0.05, atol=0)


def test_only_the_last_steps_before_a_reallocation_are_measured() -> None:
    assert [measured_steps(beta) for beta in (0.0, 0.5, 0.9, 0.98)] == [3, 6, 30, 150]
    model = lora()
    allocator, optimizer = allocator_for(
        model, signal="delta", warmup_steps=12, reallocate_every=10, max_reallocations=2, min_rank=1, beta=0.5
    )
    armed = []
    for step in range(24):
        armed.append(hooks(model) > 0)
        steps(model, allocator, optimizer, range(step, step + 1))
    assert [step for step in range(24) if armed[step]] == [*range(6, 12), *range(16, 22)]


def test_a_saved_model_is_not_watched(tmp_path: Path) -> None:
    model = lora()
    allocator, _ = allocator_for(model, signal="delta", warmup_steps=WARMUP)
    torch.save(model, tmp_path / "model.pt")
    copy = torch.load(tmp_path / "model.pt", weights_only=False)
    with torch.no_grad():
        copy(batches_of(0, 1)[0])
    backward(copy, batches_of(0, 1), 0)
    assert not allocator._recorder.ratios.products


def test_a_compiled_model_is_estimated_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = lora()
    compiled = torch.compile(model, backend="eager")
    allocator, optimizer = allocator_for(model, signal="delta", warmup_steps=WARMUP, beta=0.0)
    for step in range(WARMUP - 1):
        compiled(batches_of(step, 1)[0]).square().mean().backward()
        allocator.step()
        pairs = map(factors, layers(model).values())
        estimates = torch.stack([B.grad.norm() / 2 * A.shape[1] ** 0.5 / A.norm() for A, B in pairs])
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(norms(allocator), estimates, rtol=1e-5, atol=0)
    assert caplog.text.count("estimated from ∂L/∂B") == 1


def test_a_convolution() -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Tanh()), LoraConfig(r=2, target_modules=["0"])
    )
    layer = model.base_model.model[0]
    nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    allocator, optimizer = allocator_for(model, signal="delta", warmup_steps=WARMUP)
    x = torch.randn(4, 3, 8, 8)
    A, B = (factor.detach() for factor in factors(layer))
    delta = (layer.scaling["default"] * B.flatten(1) @ A.flatten(1)).view(5, 3, 3, 3).requires_grad_()
    weight = layer.base_layer.weight + delta
    torch.tanh(nn.functional.conv2d(x, weight, layer.base_layer.bias, 2, 1)).square().mean().backward()
    expected = by_definition(delta.grad.flatten(1), *omegas(allocator))
    model(x).square().mean().backward()
    update(optimizer, allocator)
    assert allocator.norms["0"] == pytest.approx(expected, rel=1e-4)


def repeated_or_not(draw: random.Random) -> dict[str, torch.Tensor]:
    """Does the second half of a sequence repeat the first?"""
    halves = [[draw.randrange(1, 32) for _ in range(6)] for _ in range(16)]
    labels = [draw.randrange(2) for _ in halves]
    ids = [half + (half if label else draw.sample(range(1, 32), 6)) for half, label in zip(halves, labels)]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def test_ranks_at_the_end_of_a_warm_up_are_those_of_the_exact_norm() -> None:
    """At a real learning rate A has aligned with G by then, and the estimate by a random A is far off."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=32, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
    base = BertForSequenceClassification(BertConfig(**sizes, num_labels=2))
    names = [n for n, m in base.named_modules() if isinstance(m, nn.Linear) and ".layer." in n]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=names, modules_to_save=["classifier", "pooler"])
    model = get_peft_model(base, config).train()
    accelerate_lora(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    warm_up = 157
    config = RankAllocationConfig(warmup_steps=warm_up + 1)  # so that the last step reallocates nothing
    allocator = RankAllocator(model, optimizer, config)
    matrices = allocator.adapter.matrices
    gradients: dict[str, torch.Tensor] = {}
    for name, matrix in matrices.items():

        def watch(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor, name: str = name) -> None:
            x = given[0].detach().flatten(0, -2)
            output.register_hook(lambda g: gradients.__setitem__(name, g.flatten(0, -2).T @ x))

        matrix.layer.register_forward_hook(watch)
    exact = estimated = dict.fromkeys(matrices, 0.0)
    draw = random.Random(0)
    for _ in range(warm_up):
        model(**repeated_or_not(draw)).loss.backward()
        allocator.step()
        exact = {name: 0.9 * g + 0.1 * gradients[name].norm().item() for name, g in exact.items()}
        estimated = {
            name: 0.9 * g + 0.1 * (m.B.grad.norm() / m.scaling * m.shape[1] ** 0.5 / m.A.norm()).item()
            for (name, g), m in zip(estimated.items(), matrices.values())
        }
        optimizer.step()
        optimizer.zero_grad()

    def misplaced(found: dict[str, float]) -> float:
        total = 8 * len(exact)
        ranks, right = allocate_ranks(found, total), allocate_ranks(exact, total)
        return sum(abs(ranks[name] - right[name]) for name in right) / 2 / total

    assert misplaced(allocator.norms) <= 0.03
    assert misplaced(estimated) > 0.10, "the comparison can fail"
