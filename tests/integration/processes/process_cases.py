"""A training loop that runs in any number of processes on the same global batches, in DistributedDataParallel or FSDP2."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import os
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from glora import RankAllocationConfig, RankAllocator, accelerate_lora
from glora.distributed.agreement import Processes
from glora.lora.adapter import RankedAdapter
from glora.lora.following import follow_loading

WARMUP, STEPS = 4, 9
TARGETS = ["first", "second", "aside", "third"]


class Net(nn.Module):
    def __init__(self, *, branch: bool = False, checkpointed: bool = False) -> None:
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
    """One run. `before` is a module-level function: what happens in this process before training."""

    wrap: dict[str, Any] = dataclasses.field(default_factory=dict)  # DistributedDataParallel's
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    accumulate: int = 1
    branch: bool = False
    checkpointed: bool = False
    give_wrapper: bool = True
    comm_hook: str = ""
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
    learning_rate: float = 1e-2
    before: Callable[[Any], None] | None = None
    accelerated: bool = False
    compiled: bool = False
    sharded: bool = False
    mesh: tuple[int, ...] = ()


@dataclasses.dataclass
class Run:
    """Objects that `before` may look at and change."""

    model: nn.Module
    inner: nn.Module
    optimizer: torch.optim.Optimizer
    allocator: RankAllocator
    job: Job = Job()
    steps: int = 0  # made
    heard: list[str] = dataclasses.field(default_factory=list)


def world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def adapted(base: nn.Module | None = None, rank: int = 4, **fields: Any) -> nn.Module:
    return get_peft_model(base or Net(), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, **fields))


def make(job: Job) -> Run:
    torch.manual_seed(0)
    base = Net(branch=job.branch, checkpointed=job.checkpointed)
    torch.manual_seed(1)
    model = inner = adapted(base, modules_to_save=["head"])
    with torch.no_grad():  # so that every factor has a gradient from the first step on
        for name, parameter in inner.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    if job.accelerated:  # before fully_shard, which changes the layers' classes
        accelerate_lora(inner)
    if dist.is_initialized() and job.sharded:
        names = ("replicate", "shard")[-len(job.mesh or (1,)) :]
        mesh = init_device_mesh("cpu", job.mesh or (world()[1],), mesh_dim_names=names)
        fully_shard(base.first, mesh=mesh)  # a LoRA layer that is a unit itself
        fully_shard(base.second, mesh=mesh, reshard_after_forward=False)
        fully_shard(model, mesh=mesh)
    elif dist.is_initialized():
        model = DistributedDataParallel(inner, **job.wrap)
        model.marker = "kept"
        if job.comm_hook:
            _register(model, job.comm_hook)
    if job.compiled:
        model = torch.compile(model, backend="eager")
    optimizer = job.optimizer([p for p in inner.parameters() if p.requires_grad], lr=job.learning_rate)
    given = model if job.give_wrapper else inner
    allocator = RankAllocator(given, optimizer, RankAllocationConfig(**dict(warmup_steps=WARMUP) | job.config))
    return Run(model, inner, optimizer, allocator, job)


def _register(model: DistributedDataParallel, name: str) -> None:
    if name == "counted":
        model.counts = []

        def hook(counts, bucket):  # PyTorch looks at annotations, and not at ones that are strings
            counts.append(bucket.buffer().numel())
            return default_hooks.allreduce_hook(None, bucket)

        model.register_comm_hook(model.counts, hook)
    elif name == "fp16":
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    else:
        state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
        model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)


# what happens in one process, for Job(before=...)


def unwrapped(run: Run) -> None:
    run.model = run.inner


def custom_rule(run: Run) -> None:
    """A rule that gives every process other ranks."""
    names = list(run.allocator.ranks)
    run.allocator.allocate = lambda: dict.fromkeys(names, 2 + world()[0])


def rule_that_fails(run: Run) -> None:
    def fail() -> dict[str, int]:
        raise ZeroDivisionError("the rule of process 0")

    if world()[0] == 0:
        run.allocator.allocate = fail


def other_seed(run: Run) -> None:
    run.allocator.config = dataclasses.replace(run.allocator.config, seed=world()[0])


def deaf(run: Run) -> None:
    """The columns of each process are its own, and stay so."""
    other_seed(run)
    broadcast = dist.broadcast
    dist.broadcast = lambda tensor, *_, **__: None if tensor.is_floating_point() else broadcast(tensor, *_, **__)


def hear(run: Run) -> None:
    handler = logging.Handler()
    handler.emit = lambda record: run.heard.append(record.getMessage())
    logging.getLogger("glora").addHandler(handler)


class Fate:
    """Ends, or stops, the process of one rank: before, at or after the reallocation."""

    def __init__(self, rank: int, when: str, signal_number: int = signal.SIGKILL) -> None:
        self.rank, self.when, self.signal = rank, when, signal_number

    def __call__(self, run: Run) -> None:
        if world()[0] != self.rank:
            return
        methods = {"deciding": "decide", "sharing": "share", "checking": "check_shared"}
        if self.when in methods:
            setattr(run.allocator._processes, methods[self.when], self.strike)
        else:
            step = {"before": WARMUP - 2, "after": WARMUP + 2}[self.when]
            run.optimizer.register_step_pre_hook(lambda *_: self.strike() if run.steps == step else None)

    def strike(self, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), self.signal)


def batch_of(step: int) -> torch.Tensor:
    """The global batch."""
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def one_step(run: Run, step: int) -> None:
    rank, size = world()
    parts = batch_of(step).chunk(size)[rank].chunk(run.job.accumulate)
    for number, part in enumerate(parts, start=1):
        last = number == len(parts)
        if run.job.sharded and dist.is_initialized():
            run.model.set_requires_gradient_sync(last)
        wait = not last and isinstance(run.model, DistributedDataParallel)
        with run.model.no_sync() if wait else contextlib.nullcontext():
            (loss_of(run.model, part) / len(parts)).backward()
    run.allocator.step()
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.steps += 1


def prepared(job: Job) -> Run:
    run = make(job)
    if job.before is not None:
        job.before(run)
    run.model.eval()  # BatchNorm's statistics differ between batches; its buffers are there to be broadcast
    return run


def train(job: Job) -> dict[str, Any]:
    run = prepared(job)
    for step in range(STEPS):
        one_step(run, step)
    return outcome(run)


def train_all(jobs: dict[str, Job]) -> dict[str, dict[str, Any]]:
    """Several jobs one after the other: starting processes takes longer than a job."""
    return {name: _named(name, job) for name, job in jobs.items()}


def _named(name: str, job: Job) -> dict[str, Any]:
    try:
        return train(job)
    except Exception as error:
        raise RuntimeError(f"the job {name!r} failed") from error


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def outcome(run: Run) -> dict[str, Any]:
    """Result of a run; sharded tensors are whole."""
    optimizer = run.optimizer.state_dict()
    state = {i: {key: _whole(v) for key, v in of_one.items()} for i, of_one in optimizer["state"].items()}
    trained = {name: p.detach() for name, p in run.inner.named_parameters() if p.requires_grad}
    result = {
        "ranks": run.allocator.ranks,
        "norms": run.allocator.norms,
        "weights": {name: _whole(p) for name, p in trained.items()},
        "kinds": sorted({type(p).__name__ for p in trained.values()}),
        "optimizer": optimizer | {"state": state},
        "wrapper": getattr(run.model, "marker", ""),
        "training": run.model.training,
        "heard": run.heard,
        "reduced": getattr(run.model, "counts", []),
    }
    return copy.deepcopy(result)


def train_in_parts(job: Job, path: Path, middle: int, save: bool) -> dict[str, Any]:
    """Save after `middle` steps and go on; or begin there, in any number of processes."""
    run = prepared(job)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    if not save:
        state = torch.load(path, weights_only=False)
        run.allocator.load_state_dict(state["allocator"])
        if job.sharded:
            states = dict(model_state_dict=state["model"], optim_state_dict=state["optimizer"])
            set_state_dict(run.inner, run.optimizer, **states, options=whole)
        else:
            run.inner.load_state_dict(state["model"])
            run.optimizer.load_state_dict(state["optimizer"])
    for step in range(0 if save else middle, STEPS):
        if save and step == middle:
            model, optimizer = run.inner.state_dict(), run.optimizer.state_dict()
            if job.sharded:
                model, optimizer = get_state_dict(run.inner, run.optimizer, options=whole)
            if world()[0] == 0:
                torch.save({"allocator": run.allocator.state_dict(), "model": model, "optimizer": optimizer}, path)
        one_step(run, step)
    return outcome(run)


def train_within_join(job: Job, batches: tuple[int, int]) -> dict[str, Any]:
    """Each process has another number of batches."""
    run = prepared(job)
    with run.model.join():
        for step in range(batches[world()[0]]):
            one_step(run, step)
    return outcome(run)


def train_with_accelerate(size: int, rows: int = 72) -> dict[str, Any]:
    """The loop of docs/processes.md. With 72 rows an epoch ends in the midst of an accumulation, with 69 of a batch as well."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    inner = adapted()
    optimizer = torch.optim.AdamW([p for p in inner.parameters() if p.requires_grad], lr=1e-2)
    data = torch.cat([batch_of(step) for step in range(5)])[:rows]
    model, optimizer, loader = accelerator.prepare(inner, optimizer, DataLoader(data, batch_size=8 // size))
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=WARMUP))
    model.eval()
    for _ in range(2):
        for x in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, x))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    allocator.step()
                optimizer.step()
                optimizer.zero_grad()
    return outcome(Run(model, inner, optimizer.optimizer, allocator))


def errors_of_sharded_models() -> dict[str, str]:
    """The error of each way to spread a model over the processes; "" where there is none."""
    mesh = init_device_mesh("cpu", (world()[1],))

    def shard(model: nn.Module, **options: Any) -> nn.Module:
        return fully_shard(model, mesh=mesh, **options)

    def tensor_parallel(model: nn.Module) -> None:
        for layer in (getattr(model.get_base_model(), name) for name in TARGETS):
            for linear in (layer.lora_A["default"], layer.lora_B["default"]):
                linear.weight = nn.Parameter(distribute_tensor(linear.weight.data, mesh, [Shard(0)]))

    def changed_records(change: Callable[[Any], Any]) -> Callable[[nn.Module], None]:
        def spread(model: nn.Module) -> None:
            shard(model)
            for record in model._get_fsdp_state()._fsdp_param_group.fsdp_params:
                change(record)

        return spread

    def without_policy(record: Any) -> None:
        record.__dict__.pop("mp_policy", None)

    def with_other_parameters(record: Any) -> None:
        record.__class__ = type("FSDPParam", (type(record),), {"__init__": lambda self, param, info: None})

    def other_groups(model: nn.Module) -> None:
        shard(model)
        model._get_fsdp_state = lambda: types.SimpleNamespace(parameter_groups=[])

    def error_of(use: Callable[..., Any], *arguments: Any, **options: Any) -> str:
        try:
            use(*arguments, **options)
        except ValueError as error:
            return str(error)
        return ""

    def allocate(spread: Callable[[nn.Module], Any], **config: Any) -> None:
        model = adapted()
        spread(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
        RankAllocator(model, optimizer, RankAllocationConfig(**dict(warmup_steps=1) | config))

    def grow_again() -> None:
        adapter = RankedAdapter(shard(adapted()))
        Processes(adapter)
        before = dict(adapter.ranks)
        adapter.set_ranks(before | {"second": 0})
        adapter.set_ranks(before)

    def load_too_late() -> None:
        model, other = adapted(rank=4), adapted(rank=2)
        adapter = RankedAdapter(shard(model))
        follow_loading(adapter)
        model.load_state_dict(other.state_dict())

    offload = dict(offload_policy=CPUOffloadPolicy(pin_memory=False))
    columns = dict(shard_placement_fn=lambda p: Shard(p.ndim - 1) if p.ndim > 1 else None)
    return {
        "supported": error_of(allocate, shard),
        "delta_exact": error_of(allocate, shard, signal="delta_exact"),
        "offloaded": error_of(allocate, lambda model: shard(model, **offload)),
        "columns": error_of(allocate, lambda model: shard(model, **columns)),
        "tensor parallel": error_of(allocate, tensor_parallel),
        "partly": error_of(allocate, lambda model: shard(model.get_base_model().first)),
        "no policy": error_of(allocate, changed_records(without_policy)),
        "other parameters": error_of(allocate, changed_records(with_other_parameters)),
        "other groups": error_of(allocate, other_groups),
        "grown again": error_of(grow_again),
        "loaded too late": error_of(load_too_late),
    }
