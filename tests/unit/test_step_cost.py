"""glora's part of a step: no wait for the device, no memory, and work in proportion to the matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from glora import RankAllocationConfig, RankAllocator, accelerate_lora
from glora.lora import optimizer_state
from integration.training.loop_case import update

WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "_unique2")
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__len__")


class RefuseToWait(TorchDispatchMode):
    """Operations that on a GPU would wait until the device has a value, as a copy to the CPU would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in WAITS, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@contextmanager
def never_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(name: str):
        def read(self, *args, **kwargs):
            raise AssertionError(f"Tensor.{name} waits for the device")

        return read

    with monkeypatch.context() as patched:
        for name in READS:
            patched.setattr(torch.Tensor, name, refuse(name))
        with RefuseToWait():
            yield


def network(layers: int, rank: int = 4) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
    return get_peft_model(base, LoraConfig(r=rank, target_modules=[str(k) for k in range(layers)]))


def allocation(model: nn.Module, **fields: object) -> tuple[RankAllocator, torch.optim.Optimizer]:
    # fused, as Trainer's default: other kinds read their step count
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)
    return RankAllocator(model, optimizer, RankAllocationConfig(**dict(warmup_steps=4) | fields)), optimizer


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("signal", ["delta", "lora_b", "delta_exact"])
def test_a_step_waits_for_nothing(signal: str, accelerated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While norms are recorded, but for the first step's checks, and after the reallocation."""
    model = network(3)
    if accelerated:
        accelerate_lora(model)
    allocator, optimizer = allocation(model, signal=signal, **({"exact_every": 2} if signal == "delta_exact" else {}))

    def step() -> None:
        model(torch.ones(2, 8)).square().mean().backward()
        update(optimizer, allocator)

    step()
    for _ in range(2):
        with never_waiting(monkeypatch):
            step()
    step()
    assert allocator.allocated
    with never_waiting(monkeypatch):
        step()


def test_the_guard_sees_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for read in (float, bool, lambda t: t.tolist(), lambda t: t.item(), lambda t: t.nonzero()):
        with pytest.raises(AssertionError, match="waits"), never_waiting(monkeypatch):
            read(torch.ones(()))


def test_recording_keeps_one_number_for_each_matrix() -> None:
    model = network(5)
    allocator, optimizer = allocation(model, warmup_steps=100)
    for _ in range(3):
        model(torch.ones(2, 8)).square().mean().backward()
        update(optimizer, allocator)
    held = [
        t
        for owner in (allocator._recorder, allocator._recorder.average, allocator._recorder._norms)
        for value in vars(owner).values()
        for t in (value if isinstance(value, list) else [value])
        if torch.is_tensor(t) and not isinstance(t, nn.Parameter)
    ]
    assert held
    assert sum(t.numel() for t in held) <= 8 * 5


def test_a_reallocation_looks_at_each_state_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at the whole optimizer for every matrix, a thousand matrices took ten seconds."""

    def looks(layers: int) -> int:
        model = network(layers)
        allocator, optimizer = allocation(model, warmup_steps=2)
        count = 0
        mismatch = optimizer_state._mismatch

        def pluralize(*arguments: object) -> str:
            nonlocal count
            count += 1
            return mismatch(*arguments)

        for _ in range(2):
            model(torch.ones(2, 8)).square().mean().backward()
            allocator.step()
            with monkeypatch.context() as patched:
                patched.setattr(optimizer_state, "_mismatch", pluralize)
                count = 0
                optimizer.step()
            optimizer.zero_grad()
        assert allocator.allocated
        return count

    states = 3  # of each factor: AdamW's moments, and its count of steps
    assert 0 < looks(24) <= 24 * 2 * states
