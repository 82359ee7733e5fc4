"""Steps of all variants in one process: interleaved in random order, so that the machine's drift hits all alike."""

from __future__ import annotations

import random
import signal
import time
from collections import defaultdict
from typing import Any

import torch
from benchmarks.cost.variants import Variant, no_waiting

from glora.experiments.methods.adalora import INITIAL_BUDGET

SETTLING = 3  # rounds that are made and not counted
STEPS_A_ROUND = {"cpu": 1, "cuda": 5}
"""A GPU works through a queue: with a wait after each step, the time to fill it would count in full."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    variants: dict[str, Variant], batch: dict[str, Any], rounds: int, device: torch.device, clock: str
) -> dict[str, list[float]]:
    """Seconds of each variant's step in each round."""
    now, steps = CLOCKS[clock], STEPS_A_ROUND[device.type]
    order, shuffle = list(variants), random.Random(0).shuffle
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(-SETTLING, rounds):
        shuffle(order)
        for name in order:
            synchronize(device)
            start = now()
            for _ in range(steps):
                variants[name].step(batch)
            synchronize(device)
            if number >= 0:
                seconds[name].append((now() - start) / steps)
    return seconds


def waits(variant: Variant, batch: dict[str, Any], device: torch.device, steps: int = 3) -> str | None:
    """The error of steps that wait for the device between the loss and zero_grad; None where none does, and on a CPU."""
    if device.type != "cuda":
        return None
    variant.step(batch)  # the first step may wait: it looks at the optimizer
    try:
        for _ in range(steps):
            variant.step(batch, guard=no_waiting)
    except RuntimeError as error:
        variant.model.zero_grad()
        return str(error).splitlines()[0]
    return None


def compile_within(variant: Variant, batch: dict[str, Any], seconds: float) -> str | None:
    """Make the step that compiles; the reason where it fails or takes longer, else None."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"did not finish within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)  # again: autotuning survives an error in one of its candidates
    start = time.perf_counter()
    try:
        variant.step(batch)
    except Exception as error:  # each backend has its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    variant.notes["compilation_seconds"] = round(time.perf_counter() - start, 3)
    return None


def memory(variant: Variant, batch: dict[str, Any], device: torch.device) -> dict[str, int]:
    """Bytes: held between steps, added to that at the height of a step, and kept from its forward to its backward pass."""
    held = {}
    tensors = [*variant.model.parameters(), *variant.model.buffers()]
    if variant.optimizer is not None:
        tensors += [t for state in variant.optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    for tensor in tensors:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return {"held": sum(held.values()), "step": _height(variant, batch, device), "kept": _kept(variant, batch, held)}


def _height(variant: Variant, batch: dict[str, Any], device: torch.device) -> int:
    """The most that a step has allocated at once and not yet freed; on a CPU by the profiler's list of allocations."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        variant.step(batch)
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        variant.step(batch)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    live = height = 0
    for event in events:
        live += event.nbytes()
        height = max(height, live)
    return height


def _kept(variant: Variant, batch: dict[str, Any], held: dict[int, int]) -> int:
    """Each storage once, however often it is saved; weights and inputs are not counted."""
    known = {*held, *(tensor.untyped_storage().data_ptr() for tensor in batch.values())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = variant.loss(batch)
    del loss
    return sum(kept.values())


def profile(variant: Variant, batch: dict[str, Any], rank: int, steps: int = 4) -> dict[str, float]:
    """Milliseconds of a step by kind of operation: each operation's shortest time in some steps, added up."""
    ranks = {rank, round(INITIAL_BUDGET * rank)}  # AdaLoRA begins with more
    runs: list[list[tuple[str, float]]] = []
    for _ in range(steps):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiled:
            variant.step(batch)
        events = [e for e in profiled.events() if e.name.startswith(("aten::", "mkldnn::"))]
        events.sort(key=lambda event: event.time_range.start)
        runs.append([(_kind(e.name, e.input_shapes, ranks), e.self_cpu_time_total / 1e3) for e in events])
    times: dict[str, float] = defaultdict(float)
    runs = [run for run in runs if len(run) == len(runs[-1])]  # AdaLoRA's steps are not all alike
    for calls in zip(*runs, strict=True):
        times[calls[0][0]] += min(milliseconds for _, milliseconds in calls)
    return dict(sorted(times.items()))


def _kind(name: str, shapes: list[list[int]], ranks: set[int]) -> str:
    if name in ("aten::mm", "aten::addmm", "aten::addmm_", "mkldnn::_linear_pointwise"):
        return "thin products" if any(set(shape) & ranks for shape in shapes if len(shape) == 2) else "products with W"
    if name in ("aten::add", "aten::add_", "aten::mul", "aten::mul_"):
        return "additions and scalings"
    if "bmm" in name or "attention" in name or name == "aten::sum":
        return "attention's products and sums"
    return "optimizer" if "adam" in name else "other operations"
