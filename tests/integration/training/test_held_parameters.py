"""Parameters are the same objects before and after a reallocation, so whoever holds them goes on holding the right ones."""

from __future__ import annotations

import gc
import io
import signal
from typing import Any

import pytest
import torch
from torch import nn

from glora import RankAllocator
from glora.lora.matrix import LoraMatrix, Resized
from integration.training.loop_case import (
    STEPS,
    WARMUP,
    adamw,
    allocator_for,
    batch_of,
    lora,
    loss_of,
    started,
    train,
    update,
)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("bounds", [{}, {"max_rank": {"first": 0}}], ids=["all", "one at rank 0"])
def test_clipping_by_a_list_made_before(bounds: dict[str, Any]) -> None:
    model = lora()
    parameters, optimizer = trained(model), adamw(model)
    allocator = allocator_for(model, optimizer, **bounds)
    for step in range(STEPS):
        (50 * loss_of(model, batch_of(step))).backward()
        nn.utils.clip_grad_norm_(parameters, 0.1)
        clipped = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        assert clipped <= 0.1001, step
        update(optimizer, allocator)
    assert allocator.allocated
    assert {id(p) for p in trained(model)} <= set(map(id, parameters))


def test_hooks_on_parameters_stay() -> None:
    model = lora()
    optimizer = adamw(model)
    calls: list[str] = []
    B = model.base_model.model.first.lora_B.default.weight
    B.register_hook(lambda gradient: calls.append("hook"))
    B.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    train(model, optimizer, allocator_for(model, optimizer, min_rank=1), range(STEPS))
    assert calls == ["hook", "accumulated"] * STEPS


def test_gradients_of_the_old_shape_go() -> None:
    """Or zero_grad(set_to_none=False) would leave them for the next backward pass."""
    model, optimizer, allocator = started(min_rank=1)
    for step in range(STEPS):
        loss_of(model, batch_of(step)).backward()
        allocator.step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is None or p.grad.shape == p.shape for p in trained(model))
    assert allocator.allocated


def test_named_optimizers_keep_their_names() -> None:
    model = lora()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(named, lr=1e-2)
    train(model, optimizer, allocator_for(model, optimizer, max_rank={"first": 0}), range(STEPS))
    (group,) = optimizer.param_groups
    names = dict(zip(map(id, group["params"]), group["param_names"], strict=True))
    assert all(names[id(p)] == name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("held", ["lora_A", "lora_B"])
def test_an_optimizer_for_one_factor_alone_is_refused(held: str) -> None:
    model = lora()
    optimizer = torch.optim.AdamW([p for name, p in model.named_parameters() if held in name])
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}[held]
    with pytest.raises(ValueError, match=f"{other} of 2 of 2 matrices.*one optimizer.*freeze"):
        allocator_for(model, optimizer)


def test_an_optimizer_made_anew_is_an_error_at_once() -> None:
    model, optimizer, allocator = started()
    train(model, optimizer, allocator, range(2))
    again = adamw(model, lr=1e-3)
    train(model, again, allocator, range(2, 3))
    loss_of(model, batch_of(3)).backward()
    with pytest.raises(RuntimeError, match="another optimizer .* RankAllocator"):
        allocator.step()
    state = allocator.state_dict()
    continued = allocator_for(model, again)
    continued.load_state_dict(state)
    train(model, again, continued, range(3, 6))
    assert continued.allocated


def test_an_adapter_that_is_not_active_is_named() -> None:
    model, _, allocator = started()
    loss_of(model, batch_of(0)).backward()
    with model.disable_adapter(), pytest.raises(RuntimeError, match=r"'default' .*set_adapter\('default'\)"):
        allocator.step()
    allocator.step()


def test_a_deleted_adapter_is_named() -> None:
    model, optimizer, allocator = started()
    train(model, optimizer, allocator, range(1))
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    model.delete_adapter("default")
    loss_of(model, batch_of(1)).backward()
    with pytest.raises(RuntimeError, match="'default' .*another RankAllocator"):
        allocator.step()


def test_a_compiled_step_does_not_trace_the_reallocation(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    model, optimizer, allocator = started(min_rank=1)
    compiling: list[bool] = []
    resized = LoraMatrix.resized
    monkeypatch.setattr(
        LoraMatrix, "resized", lambda *a, **k: compiling.append(torch.compiler.is_compiling()) or resized(*a, **k)
    )
    step = torch.compile(optimizer.step, backend="eager")
    for number in range(WARMUP + 2):
        loss_of(model, batch_of(number)).backward()
        allocator.step()
        step()
        optimizer.zero_grad()
    assert allocator.allocated
    assert compiling == [False, False]


def test_nothing_is_left_over_after_many_reallocations() -> None:
    model, optimizer, allocator = started(warmup_steps=1, reallocate_every=1, min_rank=1)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    counts = []
    for step in range(60):
        train(model, optimizer, allocator, range(step, step + 1))
        if step in (9, 59):
            counts.append(tensors())
    assert allocator._reallocations == 60
    assert counts[1] <= counts[0]


def test_every_reallocation_draws_other_rows() -> None:
    model = lora(r=2)
    optimizer = adamw(model, lr=0.0)
    ranks = iter([{"first": 2, "second": 4}, {"first": 2, "second": 2}, {"first": 2, "second": 4}])

    class Given(RankAllocator):
        def allocate(self) -> dict[str, int]:
            return next(ranks)

    allocator = Given(model, optimizer, dict(warmup_steps=1, reallocate_every=1, max_reallocations=3, keep="first"))
    drawn = []
    for step in range(3):
        train(model, optimizer, allocator, range(step, step + 1))
        drawn.append(allocator.adapter.matrices["second"].A.detach()[2:].clone())
    assert drawn[0].shape == drawn[2].shape == (2, 16)
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("stage", ["making", "putting in place"])
def test_an_interrupted_reallocation_is_made_at_the_next_step(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, allocator = started(min_rank=1)
    train(model, optimizer, allocator, range(WARMUP - 1))
    owner, name = (LoraMatrix, "resized") if stage == "making" else (Resized, "commit")
    call, calls = getattr(owner, name), []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return call(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, allocator, range(WARMUP - 1, WARMUP))
    optimizer.zero_grad()
    in_place = {name: matrix.A.shape[0] for name, matrix in allocator.adapter.matrices.items()}
    assert allocator.ranks == in_place
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(model, optimizer, allocator, range(WARMUP, STEPS))
    assert allocator.allocated
    assert allocator.in_effect
    torch.save(model, io.BytesIO())


def test_an_average_of_the_old_shape_fails_at_its_next_update() -> None:
    model = lora()
    parameters, optimizer = trained(model), adamw(model)
    averages = [p.detach().clone() for p in parameters]
    train(model, optimizer, allocator_for(model, optimizer, min_rank=2), range(STEPS))
    with pytest.raises(RuntimeError, match="size of tensor"):
        for average, parameter in zip(averages, parameters):
            average.lerp_(parameter.detach(), 0.1)
