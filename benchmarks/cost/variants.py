"""The compared variants: an object for each, with its own model, all of them on the same frozen weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar
from unittest import mock

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn

from glora import RankAllocationConfig, RankAllocator, accelerate_lora
from glora.experiments.methods.adalora import INITIAL_BUDGET, ORTHOGONALITY_WEIGHT
from glora.experiments.methods.limits import AdaLoraSchedule
from glora.lora.adapter import RankedAdapter

WARMUP = 4  # steps before a reallocation
WIDE = 4  # rank before a cut, over the rank that it leaves on average
AUTOTUNE = "max-autotune-no-cudagraphs"  # graphs keep a memory pool for each of the models that take turns
ADALORA_STEPS = 1000  # AdaLoRA masks between its first 120 and its last 500 of these, and that phase is measured


@dataclass
class Variant:
    """A way to train, and its step.

    Attributes:
        model: The model.
        optimizer: AdamW over what is trained, as Trainer makes it; None for the floor.
        allocator: The RankAllocator that records, or that has reallocated.
        after_step: What comes between the optimizer's step and zero_grad.
        forward: The forward pass, where it is not the model's own.
        within: What its step is made in.
        compiles: Whether its first step compiles.
        notes: What was measured while the variant was made.
        seconds: What parts of a step took.
        clock: Measures them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    allocator: RankAllocator | None = None
    after_step: Callable[[], None] | None = None
    forward: Callable[..., Any] | None = None
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    compiles: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    clock: ClassVar[Callable[[], float]] = time.perf_counter

    def step(
        self, batch: dict[str, Any], guard: Callable[[torch.device], AbstractContextManager[object]] = nullcontext
    ) -> None:
        """Make a step; the guard is around what follows the forward pass."""
        with self.within():
            self._step(batch, guard)

    def loss(self, batch: dict[str, Any]) -> torch.Tensor:
        forward = self.model if self.forward is None else self.forward
        return forward(**batch).loss

    def _step(self, batch: dict[str, Any], guard: Callable[[torch.device], AbstractContextManager[object]]) -> None:
        loss = self.loss(batch)
        with guard(loss.device):
            loss.backward()
            if self.allocator is not None:
                with self.timed("recording"):
                    self.allocator.step()
            if self.optimizer is None:
                return
            self.optimizer.step()
            if self.after_step is not None:
                with self.timed("after_step"):
                    self.after_step()
            self.optimizer.zero_grad()

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Time to queue the work, on a GPU."""
        start = self.clock()
        yield
        self.seconds.setdefault(what, []).append(self.clock() - start)

    def timing(self, what: str, function: Callable[[], None], *, waiting: bool = False) -> Callable[[], None]:
        """Wrap a function in `timed`; `waiting` counts the GPU's work as well, and none that was queued before."""

        def timed() -> None:
            device = next(self.model.parameters()).device
            wait = waiting and device.type == "cuda"
            if wait:
                torch.cuda.synchronize(device)
            with self.timed(what):
                function()
                if wait:
                    torch.cuda.synchronize(device)

        return timed


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Within it a wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Factory:
    """Makes the variants of one base model at one rank.

    Args:
        base: The model; all variants but full fine-tuning share its weights.
        batch: What warm-up steps are made with.
        rank: LoRA's rank.
        task: PEFT's task type.
    """

    def __init__(self, base: nn.Module, batch: dict[str, Any], rank: int, task: str) -> None:
        self.base, self.batch, self.rank, self.task = base, batch, rank, task
        self.spectrum = {"rule": "spectrum", "average_rank": rank, "budget": "parameters"}
        self.makers: dict[str, Callable[[], Variant]] = {
            "LoRA": self.lora,
            "frozen": self.frozen,
            "frozen, with LoRA's backward pass": self.frozen_as_lora,
            "full fine-tuning": self.full,
            "AdaLoRA": self.adalora,
            "AdaLoRA without its penalty": lambda: self.adalora(penalty=False),
            "GLoRA records, delta": self.recording,
            "GLoRA records, delta_exact, m = 16": lambda: self.recording(signal="delta_exact", exact_every=16),
            "GLoRA records, delta_exact, m = 1": lambda: self.recording(signal="delta_exact", exact_every=1),
            "GLoRA reallocated": self.reallocated,
            "GLoRA reallocated, min_rank 1": lambda: self.reallocated(min_rank=1),
            "GLoRA reallocated, parameter budget": lambda: self.reallocated(budget="parameters"),
            "GLoRA reallocated, parameter budget, min_rank 1": lambda: self.reallocated(
                budget="parameters", min_rank=1
            ),
            "GLoRA reallocated, last third only": self.last_third,
            "LoRA of four times the rank": self.wide,
            "GLoRA cut from four times the rank": self.cut,
            "LoRA, accelerated": lambda: accelerated(self.lora()),
            "LoRA, accelerated, by MKL": lambda: by_mkl(accelerated(self.lora())),
            "GLoRA reallocated, accelerated": lambda: accelerated(self.reallocated()),
            "GLoRA reallocated, last third only, accelerated": lambda: accelerated(self.last_third()),
            "LoRA of four times the rank, accelerated": lambda: accelerated(self.wide()),
            "GLoRA cut from four times the rank, accelerated": lambda: accelerated(self.cut()),
            "LoRA, compiled": lambda: compiled(self.lora()),
            "LoRA, compiled, max-autotune": lambda: compiled(self.lora(), AUTOTUNE),
            "LoRA, accelerated, compiled": lambda: compiled(accelerated(self.lora())),
            "LoRA of four times the rank, compiled": lambda: compiled(self.wide()),
            "GLoRA cut from four times the rank, compiled": lambda: compiled(self.cut()),
            "LoRA, bf16": lambda: in_bfloat16(self.lora()),
            "LoRA, bf16, compiled": lambda: in_bfloat16(compiled(self.lora())),
            "LoRA, bf16, compiled, max-autotune": lambda: in_bfloat16(compiled(self.lora(), AUTOTUNE)),
            "LoRA, bf16, accelerated": lambda: in_bfloat16(accelerated(self.lora())),
            "LoRA, bf16, accelerated, compiled": lambda: in_bfloat16(compiled(accelerated(self.lora()))),
        }

    def copy_of_base(self) -> nn.Module:
        """A model of its own on the same parameters."""
        shared = {id(parameter): parameter for parameter in self.base.parameters()}
        return copy.deepcopy(self.base, shared).train()

    def frozen(self) -> Variant:
        """Forward, and backward for the inputs only."""
        model = self.copy_of_base().requires_grad_(False)
        model.get_input_embeddings().register_forward_hook(ask_for_gradients)
        return Variant(model)

    def frozen_as_lora(self) -> Variant:
        """Forward, and backward to the output of every matrix that LoRA would adapt: what remains of LoRA if its branches
        were free. It differs from `frozen` where a matrix's input is not a function of the model's."""
        model = self.copy_of_base().requires_grad_(False)
        for name in self.targets():
            model.get_submodule(name).register_forward_hook(ask_for_gradients)
        return Variant(model)

    def full(self) -> Variant:
        model = copy.deepcopy(self.base).train().requires_grad_(True)
        return Variant(model, adamw(model))

    def lora(self, rank: int | None = None) -> Variant:
        rank = rank or self.rank
        torch.manual_seed(0)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=self.task)
        model = get_peft_model(self.copy_of_base(), config).train()
        return Variant(model, adamw(model))

    def adalora(self, *, penalty: bool = True) -> Variant:
        schedule = AdaLoraSchedule.of(ADALORA_STEPS)
        torch.manual_seed(0)
        config = AdaLoraConfig(
            init_r=round(INITIAL_BUDGET * self.rank),
            target_r=self.rank,
            lora_alpha=2 * INITIAL_BUDGET * self.rank,
            target_modules=self.targets(),
            task_type=self.task,
            orth_reg_weight=ORTHOGONALITY_WEIGHT,
            **asdict(schedule),
        )
        model = get_peft_model(self.copy_of_base(), config).train()
        made = iter(range(schedule.tinit + 1, ADALORA_STEPS))
        return Variant(
            model,
            adamw(model),
            after_step=lambda: model.base_model.update_and_allocate(next(made)),
            forward=None if penalty else model.base_model.model,  # PEFT adds the penalty outside of it
        )

    def recording(self, *, start: int | None = None, **fields: Any) -> Variant:
        variant = self.lora(start)
        config = RankAllocationConfig(warmup_steps=1_000_000, **fields)
        variant.allocator = allocator = RankAllocator(variant.model, variant.optimizer, config)
        allocator._after_optimizer_step = variant.timing("averaging", allocator._after_optimizer_step)
        return variant

    def wide(self) -> Variant:
        """Train wide, cut once: a step before the cut, with the allocator that counts it."""
        return self.recording(start=WIDE * self.rank, **self.spectrum)

    def cut(self) -> Variant:
        """Train wide, cut once: a step after the cut, at LoRA's number of parameters."""
        return self.reallocated(start=WIDE * self.rank, **self.spectrum)

    def reallocated(self, *, start: int | None = None, **fields: Any) -> Variant:
        variant = self.lora(start)
        variant.allocator = RankAllocator(
            variant.model, variant.optimizer, RankAllocationConfig(warmup_steps=WARMUP, **fields)
        )
        variant.allocator._reallocate = variant.timing("reallocation", variant.allocator._reallocate, waiting=True)
        for _ in range(WARMUP):
            variant.step(self.batch)
        ranks = variant.allocator.ranks
        variant.notes = {
            "reallocation_seconds": variant.seconds.pop("reallocation")[0],
            "matrices_without_adapter": sum(rank == 0 for rank in ranks.values()),
            "largest_rank": max(ranks.values()),
        }
        variant.allocator.detach()
        variant.allocator = None
        variant.seconds.clear()
        return variant

    def last_third(self) -> Variant:
        """The best case of min_rank 0: the same total rank, all of it in the last third of the matrices."""
        names = self.targets()
        return self.reallocated(max_rank=dict.fromkeys(names[: 2 * len(names) // 3], 0))

    def targets(self) -> list[str]:
        return list(RankedAdapter(self.lora().model).matrices)


def ask_for_gradients(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    if not output.requires_grad:
        output.requires_grad_()


def accelerated(variant: Variant) -> Variant:
    accelerate_lora(variant.model)
    return variant


def by_mkl(variant: Variant) -> Variant:
    """Multiply with the library of PEFT's forward: the gain of accelerate_lora on every processor."""
    variant.within = lambda: mock.patch("glora.acceleration.products.ONEDNN_IS_FASTER", False)
    return variant


def compiled(variant: Variant, mode: str = "default") -> Variant:
    """Compile by Inductor, in the first step, which is not counted."""
    variant.forward, variant.compiles = torch.compile(variant.model, mode=mode), True
    return variant


def in_bfloat16(variant: Variant) -> Variant:
    """The forward pass under autocast, as TrainingArguments(bf16=True) makes it."""
    plain = variant.model if variant.forward is None else variant.forward
    device = next(variant.model.parameters()).device

    def under_autocast(**batch: Any) -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return plain(**batch)

    variant.forward = under_autocast
    return variant


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Trainer's default, adamw_torch_fused."""
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
