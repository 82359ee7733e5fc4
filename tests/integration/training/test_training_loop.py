"""Your own training loop: accumulation, gradient scalers, compilation, resuming, and what is reported."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.data import DataLoader

from glora import RankAllocator
from integration.training.loop_case import (
    STEPS,
    WARMUP,
    adamw,
    allocator_for,
    batch_of,
    lora,
    loss_of,
    plain_run,
    same_training,
    started,
    train,
    update,
)


@pytest.fixture
def _fresh_accelerate() -> Iterator[None]:
    """Its state is one for the whole process."""
    for state in (AcceleratorState, GradientState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState):
        state._reset_state()


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.parametrize("only_when_synchronised", [True, False])
def test_accelerate(only_when_synchronised: bool) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = lora()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    data = torch.cat([batch_of(step) for step in range(STEPS)])
    model, optimizer, scheduler, loader = accelerator.prepare(
        model, optimizer, scheduler, DataLoader(data, batch_size=2)
    )
    allocator = allocator_for(model, optimizer)
    for x in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, x))
            if accelerator.sync_gradients or not only_when_synchronised:
                allocator.step()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    same_training((model, allocator), plain_run(), rtol=1e-3)


def scaled_run(
    *,
    overflow_at: tuple[int, ...] = (),
    unscale: bool = True,
    steps: int = STEPS,
    fused: bool = False,
    config: dict | None = None,
) -> tuple[nn.Module, RankAllocator]:
    """float16 with a gradient scaler; where a step overflows, it is one more and its batch counts for nothing."""
    model, optimizer, allocator = started(dict(fused=fused), **config or {})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    made = 0
    for attempt in range(steps + len(overflow_at)):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(model, batch_of(made))
        if attempt in overflow_at:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        if unscale:
            scaler.unscale_(optimizer)
        allocator.step()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        made += attempt not in overflow_at
    return model, allocator


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("signal", ["delta", "delta_exact"])
def test_steps_that_a_scaler_skips_do_not_count(signal: str, fused: bool) -> None:
    fields = dict(signal=signal) | ({"exact_every": 2} if signal == "delta_exact" else {})
    run = scaled_run(overflow_at=(0, 3, 4), fused=fused, config=fields)
    assert run[1].steps == WARMUP
    assert run[1].allocated
    assert run[1].non_finite_steps == 0
    same_training(run, scaled_run(fused=fused, config=fields), rtol=1e-5)
    assert run[1].norms == pytest.approx(plain_run(**fields)[1].norms, rel=0.05)


@pytest.mark.parametrize("how", ["scaled", "scaled, fused", "clipped"])
def test_gradients_changed_after_they_were_read(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Reported at the first step, and once."""
    fused = how.endswith("fused")
    if how == "clipped":
        model, optimizer, allocator = started()
        for step in range(3):
            loss_of(model, batch_of(step)).backward()
            allocator.step()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
    else:
        scaled_run(steps=1, fused=fused)
        assert not caplog.messages
        scaled_run(unscale=False, steps=2, fused=fused)
    (message,) = caplog.messages
    assert re.search("factor .* scaler.unscale_.* clipping", message)
    assert how == "clipped" or "0.000977" in message


def test_a_warmup_in_which_every_step_is_skipped_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model, allocator = scaled_run(overflow_at=tuple(range(120)), steps=0)
    assert allocator.steps == 0
    assert allocator.ranks == {"first": 4, "second": 4}
    (message,) = caplog.messages
    assert re.search(r"read 100 times, .* optimizer.step\(\) .* first, second", message)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_compiled_once_more_after_the_reallocation() -> None:
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    model = lora()
    compiled = torch.compile(model, backend="eager")
    optimizer = adamw(model)
    fields = dict(signal="lora_b", max_rank={"first": 3})
    allocator = allocator_for(compiled, optimizer, **fields)
    counts = []
    for step in range(STEPS):
        train(compiled, optimizer, allocator, range(step, step + 1))
        counts.append(graphs["unique_graphs"])
    assert counts[:WARMUP] == [counts[0]] * WARMUP
    assert counts[WARMUP:] == [2 * counts[0]] * (STEPS - WARMUP)
    same_training((model, allocator), plain_run(**fields), rtol=1e-5)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(x))


@pytest.mark.parametrize(("limit", "complete"), [(4, False), (8, True)])
def test_blocks_that_are_compiled_one_by_one_need_a_higher_limit(
    limit: int, complete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As accelerate's regional compilation does. With one rank all blocks share one code; each other rank needs its own."""
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(*(Block() for _ in range(6))), LoraConfig(r=4, target_modules=["linear"]))
    for block in model.base_model.model:
        block.compile(backend="eager")
    optimizer = adamw(model)
    ranks = {f"{i}.linear": i + 1 for i in range(6)}
    fields = dict(min_rank=ranks, max_rank=ranks, total_rank=21, signal="lora_b")
    allocator = allocator_for(model, optimizer, warmup_steps=2, **fields)
    counts = []
    with torch._dynamo.config.patch(recompile_limit=limit):
        for _ in range(4):
            model(torch.randn(2, 16)).square().mean().backward()
            update(optimizer, allocator)
            counts.append(graphs["unique_graphs"])
    assert allocator.ranks == ranks
    assert counts[1] == 2, "the first block's input needs no gradient"
    assert counts[2:] == [2 + 5, 2 + 5] if complete else [limit, limit]  # one with rank 4 is there already
    assert ("hit config.recompile_limit" in caplog.text) is not complete


# reallocating again, and bounds


@pytest.mark.parametrize("budget", ["rank", "parameters"])
@pytest.mark.parametrize("removed", ["first", None])
def test_reallocating_again_keeps_the_total(budget: str, removed: str | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="glora")
    model = lora(r=3)
    optimizer = adamw(model)
    bounds = {} if removed is None else {"max_rank": {removed: 0}}
    allocator = allocator_for(model, optimizer, reallocate_every=3, budget=budget, **bounds)
    before, ranks, first_norms = allocator.parameters, [], []
    costs = {name: sum(shape) for name, shape in allocator.shapes.items()}
    for step in range(WARMUP + 6):
        train(model, optimizer, allocator, range(step, step + 1))
        if step + 1 in (WARMUP, WARMUP + 3, WARMUP + 6):
            assert allocator.reallocation.step == step + 1
            assert set(allocator.norms.values()) == {0.0}, "each time from norms of its own"
            ranks.append(allocator.ranks)
        elif step + 1 == WARMUP + 1:
            first_norms = list(allocator.norms.values())
    assert len(ranks) == 3
    assert all(norm > 0 for norm in first_norms)
    assert len(first_norms) == (1 if removed else 2)
    for one in ranks:
        if budget == "rank":
            assert sum(one.values()) == 6
        else:
            spent = sum(rank * costs[name] for name, rank in one.items())
            assert before - max(costs.values()) < spent <= before
        assert removed is None or one[removed] == 0
    assert sum("matrices changed rank" in message for message in caplog.messages) == 3


def test_bounds_for_all_and_for_each_module() -> None:
    for fields, expected in (
        (dict(min_rank=3, max_rank=5), {"first": (3, 5), "second": (3, 5)}),
        (dict(min_rank={"first": 5}), {"first": (5, 6), "second": (0, 3)}),
        (dict(max_rank={"second": 2}), {"first": (6, 6), "second": (2, 2)}),
        (dict(min_rank={"second": 4}, max_rank=4), {"first": (4, 4), "second": (4, 4)}),
    ):
        _, allocator = plain_run(WARMUP, **fields)
        assert sum(allocator.ranks.values()) == 8
        for name, (low, high) in expected.items():
            assert low <= allocator.ranks[name] <= high, fields


# numerical trouble


@pytest.mark.parametrize("keep", ["norm", "svd"])
def test_weights_that_are_not_finite_keep_their_ranks(keep: str, caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, allocator = started(keep=keep)
    train(model, optimizer, allocator, range(WARMUP - 1))
    with torch.no_grad():
        model.base_model.model.second.lora_B.default.weight[0, 0] = torch.inf
    train(model, optimizer, allocator, range(WARMUP - 1, WARMUP + 2))
    assert allocator.ranks == {"first": 4, "second": 4}
    assert not allocator.allocated
    assert re.search("weights of 2 matrices .*NaN.*: first, second", caplog.text)
    assert re.search("1 of 4 warm-up steps .*NaN gradients.*: first", caplog.text)


def test_a_warmup_without_one_finite_step_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, allocator = started()
    untouched = copy.deepcopy(model.state_dict())
    for step in range(WARMUP):
        (loss_of(model, batch_of(step)) * torch.nan).backward()
        allocator.step()
        for parameter in model.parameters():
            parameter.grad = None  # a loop that throws bad gradients away, and steps all the same
        optimizer.step()
    assert not allocator.allocated
    assert re.search("4 of 4 warm-up steps .*NaN gradients.*: first, second", caplog.messages[0])
    assert "plain LoRA" in caplog.messages[1]
    assert all(torch.equal(p, untouched[name]) for name, p in model.state_dict().items())
    train(model, optimizer, allocator, range(2))
