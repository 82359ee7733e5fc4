"""An optimiser whose state cannot follow is refused at its first step, by name, before ranks change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from glora import RankAllocator
from unit.test_allocator import backward, config, lora, train


class Keeper(torch.optim.Optimizer):
    """Plain gradient descent that keeps something of each parameter."""

    def __init__(self, parameters: list[nn.Parameter], what: Callable[[nn.Parameter], object], key: str) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.what, self.key = what, key

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=0.1)
                self.keep(parameter)

    def keep(self, parameter: nn.Parameter) -> None:
        self.state[parameter][self.key] = self.what(parameter)


class Elsewhere(Keeper):
    def keep(self, parameter: nn.Parameter) -> None:
        self.param_groups[0].setdefault("moments", {})[parameter] = self.what(parameter)


class Lomo(Keeper):
    pass


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    ("kind", "what", "key", "message"),
    [
        (
            Keeper,
            torch.zeros_like,
            "curvature",
            r"Keeper keeps 'curvature' of shape \(4, 6\) for a parameter, and glora",
        ),
        (
            Keeper,
            lambda p: torch.zeros(2, p.shape[-1]),
            "exp_avg",
            r"'exp_avg' of shape \(2, 6\) for a parameter of shape \(4, 6\)",
        ),
        (
            Keeper,
            lambda p: {"U": torch.eye(2)},
            "basis",
            r"'basis' \(a dict\) for a parameter, which glora cannot carry",
        ),
        (Elsewhere, torch.zeros_like, "", r"Elsewhere keeps its state in param_groups\[...\]\['moments'\]"),
    ],
)
def test_refused_at_the_first_step(kind: type[Keeper], what: Callable, key: str, message: str) -> None:
    model = lora()
    optimizer = kind(trained(model), what, key)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=3))
    backward(model)
    allocator.step()
    with pytest.raises(ValueError, match=message + r".*use an optimiser of torch.optim"):
        optimizer.step()
    assert allocator.ranks == {"first": 4, "second": 4}


def test_stepping_within_backward_is_refused_before_the_first() -> None:
    model = lora()
    with pytest.raises(ValueError, match="Lomo steps within backward"):
        RankAllocator(model, Lomo(trained(model), torch.zeros_like, "exp_avg"), config())


@pytest.mark.parametrize(
    ("what", "key"),
    [
        (torch.ones_like, "exp_avg"),
        (lambda p: torch.ones(1), "scratch"),
        (lambda p: torch.tensor(3.0), "step"),
        (lambda p: None, "kahan_comp"),
        (lambda p: 3, "count"),
    ],
)
def test_what_can_follow_does(what: Callable, key: str) -> None:
    model = lora()
    optimizer = Keeper(trained(model), what, key)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=2))
    train(model, optimizer, allocator, 2)
    assert allocator.allocated
    for parameter in trained(model):
        value = optimizer.state[parameter].get(key)
        assert not torch.is_tensor(value) or value.numel() == 1 or value.shape == parameter.shape
    assert not optimizer._optimizer_step_pre_hooks, "it looks at the first step only"
