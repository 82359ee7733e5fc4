"""Steps that enter the moving average of the gradient norms, and steps that do not."""

from __future__ import annotations

import re

import pytest
import torch

from glora import RankAllocator
from integration.training.loop_case import update
from unit.test_allocator import backward, config, lora, started, train


def test_the_average_is_the_recursion_as_published() -> None:
    model, optimizer, allocator = started(signal="lora_b", beta=0.75, warmup_steps=9)
    g = 0.0
    for seed in range(4):
        backward(model, seed)
        g = 0.75 * g + 0.25 * model.base_model.model.first.lora_B.default.weight.grad.norm().item()
        update(optimizer, allocator)
        assert allocator.norms["first"] == pytest.approx(g, rel=1e-5)
    assert sum(allocator.scores.values()) == pytest.approx(1)


def test_norms_are_of_the_accumulated_gradient() -> None:
    """Two micro-batches whose gradients cancel: the norm of the sum is 0, the sum of the norms is not."""
    model, optimizer, allocator = started()
    x = torch.randn(5, 6)
    model(x).sum().backward()
    allocator.step()
    (-model(x).sum()).backward()
    allocator.step()  # a loop that calls it for each micro-batch is right as well: the last call counts
    optimizer.step()
    assert allocator.norms == pytest.approx({"first": 0.0, "second": 0.0}, abs=1e-6)
    assert allocator.steps == 1


def test_non_finite_steps_stay_out_of_the_average(caplog: pytest.LogCaptureFixture) -> None:
    model = lora()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    allocator = RankAllocator(model, optimizer, config())
    train(model, optimizer, allocator, 1)
    before = allocator.norms
    backward(model, 9)
    model.base_model.model.first.lora_B.default.weight.grad[0, 0] = torch.nan
    allocator.step()
    for parameter in model.parameters():
        parameter.grad = None
    optimizer.step()
    assert allocator.norms == before
    assert allocator.non_finite_steps == 1
    train(model, optimizer, allocator, 1)
    assert allocator.allocated
    assert re.search("1 of 3 warm-up steps .*NaN gradients", caplog.text)
