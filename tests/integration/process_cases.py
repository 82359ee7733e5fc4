"""A training loop of one's own that runs in any number of processes on the same global batches."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from glora import RankAllocationConfig, RankAllocator

WARMUP, STEPS = 4, 9
TARGETS = ["first", "second", "aside", "third"]


class Net(nn.Module):
    def __init__(self, *, branch: bool, checkpointed: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 12)
        self.aside, self.third = nn.Linear(12, 12), nn.Linear(12, 12)
        self.norm, self.head = nn.BatchNorm1d(12, affine=False), nn.Linear(12, 3)
        self.branch, self.checkpointed = branch, checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        if not self.branch or bool(x[0, 0] > 0):  # taken in some processes and steps
            h = h + torch.tanh(self.aside(h))
        third = checkpoint(self.third, h, use_reentrant=False) if self.checkpointed else self.third(h)
        return self.head(self.norm(torch.tanh(third)))


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    wrap: dict[str, Any] = dataclasses.field(default_factory=dict)  # DistributedDataParallel's
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    branch: bool = False
    checkpointed: bool = False
    give_wrapper: bool = True
    comm_hook: str = ""
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    learning_rate: float = 1e-2
    steps: int = STEPS
    before: Callable[[Any], None] | None = None  # a module-level function: what happens in this process
    compiled: bool = False


@dataclasses.dataclass
class Run:
    """What `before` may look at and change."""

    model: nn.Module
    inner: nn.Module
    optimizer: torch.optim.Optimizer
    allocator: RankAllocator
    job: Job


def world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def make(job: Job) -> Run:
    torch.manual_seed(0)
    base = Net(branch=job.branch, checkpointed=job.checkpointed)
    torch.manual_seed(1)
    inner = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=["head"]))
    with torch.no_grad():  # so that every factor has a gradient from the first step on
        for name, parameter in inner.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model = inner
    if dist.is_initialized():
        model = DistributedDataParallel(inner, **job.wrap)
        model.marker = "kept"
        if job.comm_hook:
            _register(model, job.comm_hook)
    if job.compiled:
        model = torch.compile(model, backend="eager")
    parameters = [p for p in inner.parameters() if p.requires_grad]
    optimizer = job.optimizer(parameters, lr=job.learning_rate)
    given = model if job.give_wrapper else inner
    allocator = RankAllocator(given, optimizer, RankAllocationConfig(**dict(warmup_steps=WARMUP) | job.config))
    return Run(model, inner, optimizer, allocator, job)


def _register(model: DistributedDataParallel, name: str) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

    if name == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    else:
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


def batch_of(step: int, size: int = 16) -> torch.Tensor:
    """The global batch."""
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(step))


def mine(x: torch.Tensor) -> torch.Tensor:
    """What this process sees of it; BatchNorm's own statistics are kept out of the comparison by eval mode."""
    rank, size = world()
    return x.chunk(size)[rank]


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def one_step(run: Run, step: int) -> float:
    parts = mine(batch_of(step)).chunk(run.job.accumulate)
    for number, part in enumerate(parts, start=1):
        synchronised = number == len(parts) or not isinstance(run.model, DistributedDataParallel)
        with contextlib.nullcontext() if synchronised else run.model.no_sync():
            loss = loss_of(run.model, part) / len(parts)
            loss.backward()
    run.allocator.step()
    run.optimizer.step()
    run.optimizer.zero_grad()
    return loss.item()


def train(job: Job) -> dict[str, Any]:
    run = make(job)
    if job.before is not None:
        job.before(run)
    run.model.eval()  # BatchNorm's statistics differ between batches; its buffers are there to be broadcast
    for step in range(job.steps):
        one_step(run, step)
    return outcome(run)


def outcome(run: Run) -> dict[str, Any]:
    allocator = run.allocator
    result = {
        "ranks": allocator.ranks,
        "norms": allocator.norms,
        "weights": {name: p.detach() for name, p in run.inner.named_parameters() if p.requires_grad},
        "optimizer": run.optimizer.state_dict(),
        "wrapper": getattr(run.model, "marker", ""),
        "training": run.model.training,
    }
    return copy.deepcopy(result)
