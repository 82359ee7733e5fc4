"""An optimizer whose state cannot follow is refused at its first step, by name, before ranks change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft.optimizers import create_lorafa_optimizer
from torch import nn
from transformers.optimization import Adafactor as TransformersAdafactor

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
        (Keeper, torch.zeros_like, "curvature", r"Keeper keeps 'curvature' of shape \(4, 6\)"),
        (Keeper, lambda p: torch.zeros(2, p.shape[-1]), "exp_avg", r"'exp_avg' of shape \(2, 6\) .* shape \(4, 6\)"),
        (Keeper, lambda p: {"U": torch.eye(2)}, "basis", r"'basis' \(a dict\)"),
        (Elsewhere, torch.zeros_like, "", r"Elsewhere .*param_groups\[...\]\['moments'\]"),
    ],
)
def test_refused_at_the_first_step(kind: type[Keeper], what: Callable, key: str, message: str) -> None:
    model = lora()
    optimizer = kind(trained(model), what, key)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=3))
    backward(model)
    allocator.step()
    with pytest.raises(ValueError, match=message + r".*use an optimizer of torch.optim"):
        optimizer.step()
    assert allocator.ranks == {"first": 4, "second": 4}


def test_state_under_names_is_refused_at_the_first_step() -> None:
    """PEFT's LoRA-FA; its moments would stay as wide as before."""
    model = lora()
    optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=0.1)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=3))
    backward(model)
    allocator.step()
    with pytest.raises(ValueError, match="LoraFAOptimizer .*state under names, .*'.*'.*use an"):
        optimizer.step()


class Wrapped(torch.optim.Optimizer):
    """Steps by another optimizer, which has the same parameter groups or, as ZeroRedundancyOptimizer's, some of its own."""

    def __init__(self, parameters: list[nn.Parameter], *, share: bool) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.inner = torch.optim.SGD(parameters, lr=0.1)
        if share:
            self.param_groups = self.inner.param_groups

    def step(self, closure: None = None) -> None:
        self.inner.step()


def test_another_optimizer_within_must_have_the_same_groups() -> None:
    model = lora()
    with pytest.raises(ValueError, match="Wrapped .* SGD"):
        RankAllocator(model, Wrapped(trained(model), share=False), config())
    optimizer = Wrapped(trained(model), share=True)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=1))
    train(model, optimizer, allocator, 1)
    grown = model.base_model.model.second.lora_B.default.weight
    before = grown.detach().clone()
    train(model, optimizer, allocator, 1)
    assert not torch.equal(grown, before)


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, TransformersAdafactor], ids=["torch", "transformers"])
def test_a_single_row_has_a_mean_that_grows_with_it(kind: type[torch.optim.Optimizer]) -> None:
    """At rank 1 Adafactor keeps one number for the one row, which is a state of the row and no counter."""
    model = lora(r=1)
    optimizer = kind(trained(model))
    allocator = RankAllocator(model, optimizer, config(warmup_steps=2, total_rank=6, min_rank=2))
    train(model, optimizer, allocator, 4)
    assert min(allocator.ranks.values()) > 1


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
