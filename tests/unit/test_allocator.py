"""The moving average, the warm-up, the moment of reallocation, and everything that is refused before it."""

from __future__ import annotations

import json
import logging
import re
import signal
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from glora import RankAllocationCallback, RankAllocationConfig, RankAllocator
from glora.lora.matrix import Resized
from integration.training.loop_case import update


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.second = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def lora(**config: object) -> nn.Module:
    torch.manual_seed(0)
    settings = dict(r=4, lora_alpha=8, target_modules=["first", "second"], modules_to_save=["head"]) | config
    return get_peft_model(Net(), LoraConfig(**settings))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)


def backward(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    model(torch.randn(5, 6, generator=generator)).square().mean().backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, allocator: RankAllocator, steps: int) -> None:
    for seed in range(steps):
        backward(model, seed)
        update(optimizer, allocator)


def config(**fields: object) -> RankAllocationConfig:
    return RankAllocationConfig(**dict(warmup_steps=3) | fields)


def started(**fields: object) -> tuple[nn.Module, torch.optim.Optimizer, RankAllocator]:
    model = lora()
    optimizer = sgd(model)
    return model, optimizer, RankAllocator(model, optimizer, config(**fields))


def test_reallocation_comes_after_the_last_warmup_step_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = lora()
    with torch.no_grad():
        model.base_model.model.second.base_layer.weight.mul_(3)  # more of the gradient reaches `first`
    optimizer = sgd(model)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=3))
    caplog.set_level(logging.INFO, logger="glora")
    train(model, optimizer, allocator, 2)
    assert not allocator.allocated
    assert allocator.ranks == {"first": 4, "second": 4}
    assert not caplog.messages
    train(model, optimizer, allocator, 1)
    assert allocator.allocated
    assert sum(allocator.ranks.values()) == 8
    first, second = allocator.ranks.values()
    assert first > 4 > second
    (line,) = caplog.messages
    assert line.startswith(f"step 3: 2 of 2 matrices changed rank, now {second} to {first} (8 ")
    assert f"adapter parameters 168 -> {first * (6 + 12) + second * (12 + 12)} " in line
    train(model, optimizer, allocator, 2)
    assert allocator.steps == 3
    assert len(caplog.messages) == 1


def test_it_is_shown_in_a_line() -> None:
    model, optimizer, allocator = started(rule="uniform", average_rank=2)
    train(model, optimizer, allocator, 3)
    assert repr(allocator) == "RankAllocator(uniform, 3 of 3 warm-up steps, 4 ranks from 2 to 2 in 2 matrices)"


def test_no_gradient_anywhere_leaves_plain_lora(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, allocator = started(warmup_steps=1)
    (model(torch.randn(2, 6)) * 0).sum().backward()
    allocator.step()
    optimizer.step()
    assert not allocator.allocated
    assert allocator.ranks == {"first": 4, "second": 4}
    assert re.search("no gradient .*2 matrices", caplog.text)
    optimizer.zero_grad()
    backward(model)
    optimizer.step()  # training goes on


def test_a_silent_matrix_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, allocator = started(warmup_steps=1)
    backward(model)
    model.base_model.model.second.lora_B.default.weight.grad = None
    allocator.step()
    optimizer.step()
    assert re.search("1 matrix .*gradient: second", caplog.text)
    assert allocator.ranks == {"first": 6, "second": 2}, "first holds at most min(6, 12)"


def test_forgetting_allocator_step_is_an_error_at_the_first_step() -> None:
    model, optimizer, _ = started()
    backward(model)
    with pytest.raises(RuntimeError, match="call allocator.step\\(\\) between loss.backward"):
        optimizer.step()


def test_detach_stops_listening() -> None:
    model, optimizer, allocator = started()
    allocator.detach()
    backward(model)
    optimizer.step()
    assert not optimizer._optimizer_step_post_hooks


def test_rank_zero_takes_the_layer_out() -> None:
    model = lora(r=1)
    optimizer = sgd(model)
    allocator = RankAllocator(model, optimizer, config(warmup_steps=1, max_rank={"first": 0}))
    train(model, optimizer, allocator, 1)
    assert allocator.ranks == {"first": 0, "second": 2}
    assert type(model.base_model.model.first) is nn.Linear
    assert [len(g["params"]) for g in optimizer.param_groups] == [6], "four factors, and the head's weight and bias"
    trainable = sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "lora_" in n)
    assert trainable == allocator.parameters == 2 * 24
    train(model, optimizer, allocator, 2)


def test_state_of_something_else_is_refused() -> None:
    _, _, allocator = started()
    state = allocator.state_dict()
    with pytest.raises(ValueError, match="version 99"):
        allocator.load_state_dict(state | {"version": 99})
    with pytest.raises(ValueError, match="other target_modules, by 2 names, .*'other'"):
        by_name = ("ranks", "initial_ranks", "norms", "non_finite_norms", "scalings")
        of_other = {key: {"first": 0, "other": 4} for key in by_name}
        allocator.load_state_dict(state | of_other)
    with pytest.raises(ValueError, match=r"beta was 0.5, is 0.9"):
        allocator.load_state_dict(state | {"config": state["config"] | {"beta": 0.5}})


def half_frozen() -> nn.Module:
    model = lora()
    model.base_model.model.first.lora_B.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (Net, {}, "no LoRA layer .*Net; .*get_peft_model"),
        (lora, dict(adapter_name="defualt"), "'defualt' .* did you mean 'default'"),
        (lora, dict(warmup_steps=None), "warmup_steps=None .*number of steps"),
        (lora, dict(warmup_steps=0.5), "warmup_steps=0.5 .*number of steps"),
        (lora, dict(total_rank=1, min_rank=1), "total_rank=1 .*min_rank of 1"),
        (lora, dict(total_rank=19), "total_rank=19 .*lower total_rank to at most 18"),
        (lambda: lora(use_dora=True), dict(max_rank=0), "max_rank=0 .*'first' .*below 1, .*DoRA.* to 1"),
        (lora, dict(total_rank=1, budget="parameters", max_rank={"first": 0}), "total_rank=1 .*raise it"),
        (half_frozen, {}, "1 of 2 matrices .*frozen, .*'first'"),
        (lora, dict(max_rank={"frist": 2}), "max_rank names 'frist', .*did you mean 'first'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(make: object, fields: dict, message: str) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=message):
        RankAllocator(model, optimizer, config(**fields))


def test_a_configuration_that_is_none_is_an_error() -> None:
    model = lora()
    allocator = RankAllocator(model, sgd(model), {"warmup_steps": 3, "beta": 0.5})
    assert (allocator.config.warmup_steps, allocator.config.beta) == (3, 0.5)
    for make in (RankAllocationCallback, lambda given: RankAllocator(model, sgd(model), given)):
        with pytest.raises(TypeError, match="config=100 .*RankAllocationConfig, .*dictionary"):
            make(100)
        with pytest.raises(TypeError, match="field 'warmup_step'; .*'warmup_steps'"):
            make({"warmup_step": 100})


def test_a_setting_that_an_earlier_glora_did_not_have_counts_as_its_default() -> None:
    old = config().to_dict()
    del old["keep"]
    assert config().differences(old) == ""
    assert config(keep="svd").differences(old) == "keep was 'norm', is 'svd'"


def test_two_active_adapters_need_a_name() -> None:
    model = lora(modules_to_save=None)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["first"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"\(default, second\).*adapter_name="):
        RankAllocator(model, sgd(model), config())
    allocator = RankAllocator(model, sgd(model), config(adapter_name="second"))
    assert allocator.ranks == {"first": 2}
    assert isinstance(model.base_model.model.first, LoraLayer)


def test_a_cut_that_ctrl_c_comes_out_of_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second cut would keep a share of the share."""
    model, optimizer, allocator = started(rule="spectrum", energy=0.6, warmup_steps=2)
    commit = Resized.commit

    def interrupted(self: Resized) -> Any:
        signal.raise_signal(signal.SIGINT)
        return commit(self)

    with monkeypatch.context() as patch:
        patch.setattr(Resized, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, allocator, 2)
    ranks = allocator.ranks
    assert allocator.in_effect
    assert sum(ranks.values()) == allocator.reallocation.total_rank < 8
    again = lora()
    continued = RankAllocator(again, sgd(again), allocator.config)
    continued.load_state_dict(json.loads(json.dumps(allocator.state_dict())))
    for one, trained in ((allocator, model), (continued, again)):
        train(trained, one._optimizer, one, 2)
        assert one.ranks == ranks
