"""Measure, at small sizes, what rank allocation costs as matrices, elements and processes grow; writes record.json.

    OMP_NUM_THREADS=1 python benchmarks/scaling/measure.py
    python benchmarks/scaling/tables.py          the tables of docs/scaling.md, from the record

Everything runs on one thread of a CPU. Times of one process are CPU seconds, the least of a few, so that other work on the
machine does not count. In a group of p processes, the real code runs in one whose collectives are counted and not sent; gloo
between real processes is timed by the clock.
"""

from __future__ import annotations

import datetime
import gc
import json
import logging
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import torch.multiprocessing
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import glora
from glora import RankAllocationConfig, RankAllocator, allocate_ranks

RECORD = Path(__file__).with_name("record.json")
MATRICES = (56, 112, 224, 448, 896)
MANY_MATRICES = (224, 896, 3584, 14336)  # where a module for each is not needed
ELEMENTS = (4096, 16384, 65536)  # d of 64 × d matrices
RANK = 16
SIMULATED = (1, 2, 4, 8, 16, 32, 64)
REAL = (2, 4, 8)


def cpu_seconds(work: Callable[[], Any], repeat: int = 3) -> float:
    times = []
    for _ in range(repeat):
        gc.collect()
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def model_of(n: int, d: int, rank: int, *, d_out: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    blocks = [[nn.Linear(d, d_out or d, bias=False) for _ in range(7)] for _ in range(n // 7)]
    base = nn.Sequential(*[nn.Sequential(*block) for block in blocks])
    names = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))


def ready(model: nn.Module) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    """An optimizer with its state, and what gives every factor a gradient."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def gradients() -> None:
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.grad = torch.full_like(parameter, 1e-3 * (1 + number % 17))

    gradients()
    optimizer.step()
    return optimizer, gradients


def reallocation(n: int, d: int, rank: int, *, d_out: int | None = None) -> dict[str, float]:
    """CPU seconds of the parts of one reallocation, in one process, with a new model each time."""
    best: dict[str, float] = {}
    for _ in range(3):
        model = model_of(n, d, rank, d_out=d_out)
        optimizer, gradients = ready(model)
        start = time.process_time()
        allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=10**6, min_rank=1))
        times = {"construct": time.process_time() - start}
        gradients()
        times["read"] = cpu_seconds(allocator.step)
        optimizer.step()
        start = time.process_time()
        ranks = allocator.allocate()
        times["allocate"] = time.process_time() - start
        start = time.process_time()
        allocator.adapter.set_ranks(ranks, optimizer=optimizer)
        times["resize"] = time.process_time() - start
        best = {key: min(value, best.get(key, value)) for key, value in times.items()}
    return best | {"n": n, "d": d, "parameters": allocator.parameters}


def reducer(n: int) -> dict[str, float]:
    """CPU seconds of making a new reducer."""
    model = model_of(n, 16, 4)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    wrapper = DistributedDataParallel(model, init_sync=False)
    seconds = cpu_seconds(lambda: glora.distributed.ddp.rebuild_reducer(wrapper))
    dist.destroy_process_group()
    return {"n": n, "seconds": seconds}


def loading(n: int) -> dict[str, float]:
    """CPU seconds in which stock PEFT loads an adapter with a rank_pattern of n entries."""
    model = model_of(n, 16, 4)
    optimizer, _ = ready(model)
    adapter = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1)).adapter
    adapter.set_ranks({name: 1 + i % 7 for i, name in enumerate(adapter.ranks)})
    base = nn.Sequential(*[nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(7)]) for _ in range(n // 7)])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        seconds = cpu_seconds(lambda: PeftModel.from_pretrained(base, folder), repeat=1)
    return {"n": n, "seconds": seconds}


def allocating(n: int) -> dict[str, float]:
    scores = {f"layers.{i // 7}.m{i % 7}": ((i * 7919) % 1009 + 1) / 1009 for i in range(n)}
    costs = {name: 2048 + 1024 * (i % 3) for i, name in enumerate(scores)}
    return {
        "n": n,
        "ranks": cpu_seconds(lambda: allocate_ranks(scores, 16 * n, max_rank=2048)),
        "parameters": cpu_seconds(lambda: allocate_ranks(scores, 16 * n, max_rank=2048, costs=costs)),
    }


class Counted:
    """Stands in for the collectives of one process among p, and counts what it sends or receives.

    What the others would send is what this process has.
    """

    def __init__(self, processes: int) -> None:
        self.processes, self.calls, self.bytes = processes, 0, 0

    def broadcast(self, tensor: torch.Tensor, *_: Any, **__: Any) -> None:
        self.note(tensor, 1)

    def all_reduce(self, tensor: torch.Tensor, *_: Any, **__: Any) -> None:
        self.note(tensor, 2)

    def all_gather(self, tensors: list[torch.Tensor], tensor: torch.Tensor, *_: Any, **__: Any) -> None:
        for other in tensors:
            other.copy_(tensor)
        self.note(tensor, self.processes - 1)

    def note(self, tensor: torch.Tensor, times: int) -> None:
        self.calls += 1
        self.bytes += tensor.numel() * tensor.element_size() * times

    def take(self) -> dict[str, int]:
        counts = {"collectives": self.calls, "bytes": self.bytes}
        self.calls = self.bytes = 0
        return counts


def simulated(processes: int) -> dict[str, Any]:
    """The collectives of glora, one by one, in one process of a group of p; n = 56 matrices of 256 × 256."""
    counted = Counted(processes)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    kept = {name: getattr(dist, name) for name in ("broadcast", "all_reduce", "all_gather")}
    for name in kept:
        setattr(dist, name, getattr(counted, name))
    try:
        model = model_of(56, 256, RANK)
        wrapper = DistributedDataParallel(model, init_sync=False) if processes > 1 else model
        optimizer, gradients = ready(model)
        allocator = RankAllocator(wrapper, optimizer, RankAllocationConfig(warmup_steps=3, min_rank=1))
        steps = []
        for _ in range(4):
            gradients()
            allocator.step()
            optimizer.step()
            steps.append(counted.take())
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)
        dist.destroy_process_group()
    parts = {"first step": 0, "later step": 1, "reallocation": 2, "step after it": 3}
    return {"processes": processes, "adapter": allocator.parameters} | {part: steps[i] for part, i in parts.items()}


def _real(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size)
    logging.getLogger("glora").setLevel(logging.WARNING)
    result: dict[str, Any] = {"processes": size}
    for elements in (1, 1 << 22):
        tensor = torch.zeros(elements)
        dist.broadcast(tensor, 0)
        dist.barrier()
        start = time.perf_counter()
        for _ in range(20):
            dist.broadcast(tensor, 0)
        dist.barrier()
        result[f"broadcast of {4 * elements} bytes"] = (time.perf_counter() - start) / 20
    model = model_of(56, 256, RANK)
    wrapper = DistributedDataParallel(model)
    optimizer, gradients = ready(model)
    allocator = RankAllocator(wrapper, optimizer, RankAllocationConfig(warmup_steps=2, min_rank=1))
    for step in range(2):
        gradients()
        allocator.step()
        dist.barrier()
        start = time.perf_counter()
        optimizer.step()
        if step == 1:
            result["reallocation"] = time.perf_counter() - start
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result), encoding="utf-8")
    dist.destroy_process_group()


def real(processes: int) -> dict[str, Any]:
    """Wall-clock seconds between processes that talk by gloo on one machine; n = 56 matrices of 256 × 256."""
    with tempfile.TemporaryDirectory() as folder:
        start = torch.multiprocessing.start_processes
        start(_real, (processes, folder), processes, start_method="fork")  # nothing has to be imported again
        return json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("glora").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    versions = {module.__name__: module.__version__ for module in (torch, peft, glora)}
    record: dict[str, Any] = {
        "made": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work; one thread",
        "versions": {"python": platform.python_version(), **versions},
        "rank": RANK,
    }
    record["by matrices"] = [reallocation(n, 16, 4) for n in MATRICES]
    record["by elements"] = [reallocation(14, d, RANK, d_out=64) for d in ELEMENTS]
    record["allocate_ranks"] = [allocating(n) for n in MANY_MATRICES]
    record["reducer"] = [reducer(n) for n in MATRICES]
    record["loading"] = [loading(n) for n in MATRICES]
    record["simulated"] = [simulated(p) for p in SIMULATED]
    record["real"] = [real(p) for p in REAL]
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RECORD.name}")


if __name__ == "__main__":
    main()
