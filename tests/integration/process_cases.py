"""A training loop of one's own that runs in any number of processes on the same global batches."""

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
    mesh: tuple[int, ...] = ()


@dataclasses.dataclass
class Run:
    """What `before` may look at and change."""

    model: nn.Module
    inner: nn.Module
    optimizer: torch.optim.Optimizer
    allocator: RankAllocator
    job: Job
    steps: int = 0  # made
    heard: list[str] = dataclasses.field(default_factory=list)


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


def _only_in(rank: int, run: Run, method: str, replacement: Callable[..., Any], *, of: Any = None) -> None:
    if world()[0] == rank:
        setattr(of or run.allocator, method, replacement)


def unwrapped(run: Run) -> None:
    run.model = run.inner


def accelerated(run: Run) -> None:
    accelerate_lora(run.inner)


def own_rule(run: Run) -> None:
    """A rule that gives every process other ranks."""
    names = list(run.allocator.ranks)
    run.allocator.allocate = lambda: dict.fromkeys(names, 2 + world()[0])


def rule_by_scores(run: Run) -> None:
    """A rule that reads the scores, where process 0 alone allocates; under fully_shard some scores have to be gathered."""

    def allocate() -> dict[str, int]:
        return {name: max(round(16 * score), 1) for name, score in run.allocator.scores.items()}

    run.allocator.allocate = allocate


def rule_that_fails(run: Run) -> None:
    def fail() -> dict[str, int]:
        raise ZeroDivisionError("the rule of process 0")

    _only_in(0, run, "allocate", fail)


def deaf(run: Run) -> None:
    """The columns of each process are its own, and stay so."""
    run.allocator.config = dataclasses.replace(run.allocator.config, seed=world()[0])
    dist.broadcast = lambda tensor, *_, **__: None if tensor.is_floating_point() else broadcast(tensor, *_, **__)


broadcast = dist.broadcast


def other_seed(run: Run) -> None:
    run.allocator.config = dataclasses.replace(run.allocator.config, seed=world()[0])


def hear(run: Run) -> None:
    run.heard = []
    handler = logging.Handler()
    handler.emit = lambda record: run.heard.append(record.getMessage())
    logging.getLogger("glora").addHandler(handler)


class Fate:
    """Ends, or stops, the process of one rank: before, at or after the reallocation."""

    def __init__(self, rank: int, when: str, signal_number: int = signal.SIGKILL) -> None:
        self.rank, self.when, self.signal = rank, when, signal_number

    def __call__(self, run: Run) -> None:
        processes = run.allocator._processes
        if self.when == "deciding":
            _only_in(self.rank, run, "decide", self.strike, of=processes)
        elif self.when == "sharing":
            _only_in(self.rank, run, "share", self.strike, of=processes)
        elif self.when == "checking":
            _only_in(self.rank, run, "check_shared", self.strike, of=processes)
        else:
            step = {"before": WARMUP - 2, "after": WARMUP + 2}[self.when]
            run.optimizer.register_step_pre_hook(lambda *_: self.strike() if run.steps == step else None)

    def strike(self, *_: Any, **__: Any) -> None:
        if world()[0] == self.rank:
            os.kill(os.getpid(), self.signal)


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
    run.steps += 1
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
        "heard": run.heard,
        "reduced": getattr(run.model, "counts", []),
    }
    return copy.deepcopy(result)


def train_in_parts(job: Job, folder: Path, middle: int, save: bool) -> dict[str, Any]:
    """Save after `middle` steps and go on; or begin there, in any number of processes."""
    run = make(job)
    run.model.eval()
    path = folder / f"checkpoint-{middle}.pt"
    if not save:
        state = torch.load(path)
        run.allocator.load_state_dict(state["allocator"])
        run.inner.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
    for step in range(0 if save else middle, job.steps):
        if save and step == middle and world()[0] == 0:
            parts = {"allocator": run.allocator, "model": run.inner, "optimizer": run.optimizer}
            torch.save({name: part.state_dict() for name, part in parts.items()}, path)
        one_step(run, step)
    return outcome(run)


def train_within_join(job: Job, batches: tuple[int, int]) -> dict[str, Any]:
    """Each process has a number of batches of its own."""
    run = make(job)
    run.model.eval()
    with run.model.join():
        for step in range(batches[world()[0]]):
            one_step(run, step)
    return outcome(run)


def train_with_accelerate(size: int, rows: int = 72) -> dict[str, Any]:
    """The loop of docs/usage.md. With 72 rows an epoch ends in the midst of an accumulation, with 69 of a batch as well."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    job = Job()
    torch.manual_seed(0)
    inner = get_peft_model(Net(branch=False, checkpointed=False), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))
    optimizer = torch.optim.AdamW([p for p in inner.parameters() if p.requires_grad], lr=1e-2)
    data = torch.cat([batch_of(step) for step in range(5)])[:rows]
    loader = DataLoader(data, batch_size=8 // size)
    model, optimizer, loader = accelerator.prepare(inner, optimizer, loader)
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
    return outcome(Run(model, inner, optimizer.optimizer, allocator, job))


def sharded(job: Job) -> Run:
    """The same model under fully_shard, each layer that has an adapter in a unit with the next, or alone."""
    torch.manual_seed(0)
    base = Net(branch=False, checkpointed=job.checkpointed)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=["head"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    if job.before is accelerated:  # before fully_shard, which changes the layers' classes
        accelerate_lora(model)
    if dist.is_initialized():
        mesh = init_device_mesh(
            "cpu", job.mesh or (world()[1],), mesh_dim_names=("replicate", "shard")[-len(job.mesh or (1,)) :]
        )
        fully_shard(base.first, mesh=mesh)  # a LoRA layer that is a unit itself
        fully_shard(base.second, mesh=mesh, reshard_after_forward=False)
        fully_shard(model, mesh=mesh)
    optimizer = job.optimizer([p for p in model.parameters() if p.requires_grad], lr=job.learning_rate)
    allocator = RankAllocator(model, optimizer, RankAllocationConfig(**dict(warmup_steps=WARMUP) | job.config))
    return Run(model, model, optimizer, allocator, job)


def train_sharded(job: Job) -> dict[str, Any]:
    run = sharded(job)
    if job.before not in (None, accelerated):
        job.before(run)
    run.model.eval()
    for step in range(job.steps):
        parts = mine(batch_of(step)).chunk(job.accumulate)
        for number, part in enumerate(parts, start=1):
            if dist.is_initialized():
                run.model.set_requires_gradient_sync(number == len(parts))
            (loss_of(run.model, part) / len(parts)).backward()
        run.allocator.step()
        run.optimizer.step()
        run.optimizer.zero_grad()
    result = outcome(run)
    whole = {name: getattr(p, "full_tensor", lambda p=p: p)() for name, p in result["weights"].items()}
    states = run.optimizer.state_dict()["state"]
    states = {
        i: {key: getattr(v, "full_tensor", lambda v=v: v)() for key, v in state.items()} for i, state in states.items()
    }
    sharded_now = [type(p).__name__ for p in run.model.parameters() if p.requires_grad]
    return result | {"weights": whole, "optimizer": states, "kinds": sorted(set(sharded_now))}


def refusals() -> list[str]:
    """What is said of models that are spread over the processes in other ways."""
    mesh = init_device_mesh("cpu", (world()[1],))

    def said(shard: Callable[[nn.Module], Any], **config: Any) -> str:
        model = get_peft_model(Net(branch=False, checkpointed=False), LoraConfig(r=4, target_modules=TARGETS))
        shard(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
        try:
            RankAllocator(model, optimizer, RankAllocationConfig(**dict(warmup_steps=1) | config))
        except ValueError as error:
            return str(error)
        return ""

    def tensor_parallel(model: nn.Module) -> None:
        for layer in (getattr(model.get_base_model(), name) for name in TARGETS):
            for linear in (layer.lora_A["default"], layer.lora_B["default"]):
                linear.weight = nn.Parameter(distribute_tensor(linear.weight.data, mesh, [Shard(0)]))

    def of_another_version(model: nn.Module) -> None:
        fully_shard(model, mesh=mesh)
        for record in model._get_fsdp_state()._fsdp_param_group.fsdp_params:
            record.__dict__.pop("mp_policy", None)

    def with_other_records(model: nn.Module) -> None:
        fully_shard(model, mesh=mesh)
        for record in model._get_fsdp_state()._fsdp_param_group.fsdp_params:
            record.__class__ = type("FSDPParam", (type(record),), {"__init__": lambda self, param, info: None})

    def with_other_groups(model: nn.Module) -> None:
        fully_shard(model, mesh=mesh)
        model._get_fsdp_state = lambda: types.SimpleNamespace(parameter_groups=[])

    def grown_again() -> str:
        model = get_peft_model(Net(branch=False, checkpointed=False), LoraConfig(r=4, target_modules=TARGETS))
        fully_shard(model, mesh=mesh)
        adapter = RankedAdapter(model)
        Processes(adapter)
        before = dict(adapter.ranks)
        adapter.set_ranks(before | {"second": 0})
        try:
            adapter.set_ranks(before)
        except ValueError as error:
            return str(error)
        return ""

    def loaded_too_late() -> str:
        model, other = (
            get_peft_model(Net(branch=False, checkpointed=False), LoraConfig(r=r, target_modules=TARGETS))
            for r in (4, 2)
        )
        fully_shard(model, mesh=mesh)
        adapter = RankedAdapter(model)
        adapter.follow_loading()
        try:
            model.load_state_dict(other.state_dict())
        except ValueError as error:
            return str(error)
        return ""

    def partly(model: nn.Module) -> None:
        fully_shard(model.get_base_model().first, mesh=mesh)

    return [
        said(lambda model: fully_shard(model, mesh=mesh), signal="delta_exact"),
        said(lambda model: fully_shard(model, mesh=mesh), relative_to="weight"),
        said(lambda model: fully_shard(model, mesh=mesh, offload_policy=CPUOffloadPolicy(pin_memory=False))),
        said(
            lambda model: fully_shard(
                model, mesh=mesh, shard_placement_fn=lambda p: Shard(p.ndim - 1) if p.ndim > 1 else None
            )
        ),
        said(tensor_parallel),
        said(partly),
        said(of_another_version),
        said(with_other_records),
        said(with_other_groups),
        grown_again(),
        loaded_too_late(),
        said(lambda model: fully_shard(model, mesh=mesh)),
    ]


def resume_sharded(folder: Path, save: bool) -> dict[str, Any]:
    """Saved after the reallocation with torch.distributed.checkpoint, whole; loaded by another number of processes."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    job = Job(mesh=(world()[1],))
    run = sharded(job)
    run.model.eval()
    middle, path = WARMUP + 1, folder / "sharded.pt"
    if not save:
        state = torch.load(path, weights_only=False)
        run.allocator.load_state_dict(state["allocator"])
        set_state_dict(
            run.model,
            run.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
    for step in range(0 if save else middle, job.steps):
        if save and step == middle:
            model, optimizer = get_state_dict(run.model, run.optimizer, options=options)
            if world()[0] == 0:
                torch.save({"allocator": run.allocator.state_dict(), "model": model, "optimizer": optimizer}, path)
        one_step(run, step)
    whole = {name: p.full_tensor().detach() for name, p in run.model.named_parameters() if p.requires_grad}
    return {"ranks": run.allocator.ranks, "weights": whole}
