"""The method: norms are averaged while LoRA trains as usual, and once the warm-up is over every matrix gets its rank.

This is where the three parts meet: gradient_norms reads ‖G_k‖_F, rank_allocation turns the averages into ranks, resize
gives them to the layers. Here lie the moving average, the warm-up and the moment of reallocation:

    g_k ← β·g_k + (1-β)·‖G_k‖_F     at each of the first T_warmup optimiser steps, from g_k = 0
    s_k = g_k / Σ_j g_j              after the last of them
    r_k = round(R_total·s_k)         with Σ r_k = R_total

A step is counted, and its norms enter the average, when the optimiser has really made it: what a gradient scaler skips,
or a micro-batch that is only accumulated, never does.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from glora._logging import get_logger
from glora.adapter import describe_ranks
from glora.configuration import RankAllocationConfig
from glora.gradient_norms import GradientNorms
from glora.lora_layers import base_model, dimensions, factors, find_lora_layers, peft_configs
from glora.optimizer_state import check_optimizer, holds, unwrap_optimizer
from glora.rank_allocation import Bound, allocate_ranks
from glora.resize import resize_lora_layer

logger = get_logger()
STATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Reallocation:
    """What happened when the ranks changed; `str()` is the line that the user sees."""

    step: int
    matrices: int
    changed: int
    removed: int
    smallest_rank: int
    largest_rank: int
    total_rank: int
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        """One line: how many matrices changed, smallest and largest rank, parameters before and after."""
        ratio = self.parameters_after / self.parameters_before - 1
        return (
            f"step {self.step}: {self.changed} of {self.matrices} matrices changed rank, now {self.smallest_rank} to "
            f"{self.largest_rank} ({self.removed} without an adapter, {self.total_rank} in all); adapter parameters "
            f"{self.parameters_before:,} -> {self.parameters_after:,} ({ratio:+.1%})"
        )


class RankAllocator:
    """Allocates the ranks of a LoRA adapter once its warm-up is over.

        allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1000))
        for batch in batches:
            model(**batch).loss.backward()
            allocator.step()
            optimizer.step()
            optimizer.zero_grad()

    `step()` reads the norms of the gradients as they are at that moment, so call it where the optimiser would see the
    same: after accumulation, after clipping, after `scaler.unscale_(optimizer)`. The optimiser's own step then takes
    them into the average and, after the last step of the warm-up, the layers are resized before the next forward pass.

    Args:
        model: A PeftModel with a LoRA adapter, or a transformers model after `add_adapter`.
        optimizer: The optimiser that trains it (accelerate's wrapper is fine).
        config: How to allocate; `warmup_steps` must be an int here.

    Attributes:
        ranks: The rank of each matrix, by module name relative to the base model; 0 where the adapter was taken out.
        allocated: Whether the ranks have been reallocated.
        steps: Optimiser steps recorded so far, at most `warmup_steps`.
        reallocation: What happened at the reallocation, or None.

    Raises:
        ValueError: no LoRA, another tuner, an unsupported layer or optimiser, a budget that the bounds cannot meet, a
            warm-up that is not a number of steps, or a process group of more than one process.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: RankAllocationConfig | None = None
    ) -> None:
        self.config = config = config or RankAllocationConfig()
        if isinstance(config.warmup_steps, bool) or not isinstance(config.warmup_steps, int):
            raise ValueError(
                f"warmup_steps={config.warmup_steps!r} must be a number of steps in a loop of one's own; only "
                "RankAllocationCallback knows how long an epoch, or the whole training, is"
            )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            if processes > 1:
                raise ValueError(
                    f"training runs in {processes} processes; glora supports one process. Start a single one"
                )
        self.adapter_name, self._layers = find_lora_layers(model, config.adapter_name)
        self._root = base_model(model)
        self._peft_config = peft_configs(model).get(self.adapter_name)
        self._exclude_modules_before = getattr(self._peft_config, "exclude_modules", None)
        self._optimizer = unwrap_optimizer(optimizer)
        check_optimizer(self._optimizer)
        self._check_trained()

        self._shapes = {name: dimensions(layer, self.adapter_name) for name, layer in self._layers.items()}
        self.initial_ranks = {name: layer.r[self.adapter_name] for name, layer in self._layers.items()}
        self.ranks = dict(self.initial_ranks)
        self.total_rank = config.total_rank if config.total_rank is not None else sum(self.ranks.values())
        self.allocated = False
        self.reallocation: Reallocation | None = None
        self.steps = 0
        self._allocate(
            dict.fromkeys(self._layers, 1.0)
        )  # bounds that cannot be met are refused now, not after the warm-up

        self._norms: GradientNorms | None = GradientNorms(self._layers, self.adapter_name, config.signal)
        self._average = torch.zeros(len(self._layers), dtype=torch.float32, device=self._norms.device)
        self._non_finite = torch.zeros((), dtype=torch.int64, device=self._norms.device)
        self._pending: torch.Tensor | None = None
        self._hook = self._optimizer.register_step_post_hook(lambda *_: self._after_optimizer_step())

    @property
    def norms(self) -> dict[str, float]:
        """g_k, the moving average of ‖G_k‖_F, by module name. Reading it waits for the device."""
        return dict(zip(self.initial_ranks, self._average.tolist()))

    @property
    def scores(self) -> dict[str, float]:
        """s_k = g_k / Σ_j g_j, by module name; all zero before the first step. Reading it waits for the device."""
        norms = self.norms
        total = sum(norms.values())
        return {name: norm / total if total else 0.0 for name, norm in norms.items()}

    @property
    def non_finite_steps(self) -> int:
        """Steps whose gradients held inf or NaN, and which the average left out. Reading it waits for the device."""
        return int(self._non_finite.item())

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of each matrix, by module name."""
        return dict(self._shapes)

    @property
    def parameters(self) -> int:
        """Parameters of the adapter at the present ranks: Σ r_k·(d_in + d_out)."""
        return self._parameters(self.ranks)

    def step(self) -> None:
        """Read the gradient norms of this step; call it after backward() and before optimizer.step().

        Raises:
            RuntimeError: there are no gradients.
        """
        if self._norms is not None:
            self._pending = self._norms.read()

    def allocate(self) -> dict[str, int]:
        """The ranks that the present scores give under the budget and the bounds; nothing is changed.

        A subclass may allocate by a rule of its own.
        """
        return self._allocate(self.norms)

    def detach(self) -> None:
        """Stop listening to the optimiser. The ranks stay as they are."""
        self._hook.remove()
        self._norms = self._pending = None

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as plain values fit for JSON."""
        return {
            "version": STATE_VERSION,
            "config": self.config.to_dict(),
            "steps": self.steps,
            "norms": self.norms,
            "non_finite_steps": self.non_finite_steps,
            "allocated": self.allocated,
            "initial_ranks": dict(self.initial_ranks),
            "ranks": dict(self.ranks),
            "reallocation": dataclasses.asdict(self.reallocation) if self.reallocation else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken.

        If the ranks had been reallocated by then, the layers are resized to them. Load the weights of the model and the
        state of the optimiser afterwards.

        Raises:
            ValueError: the state is of another version, model or configuration.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the allocator's state has version {state.get('version')!r}; this glora reads {STATE_VERSION}"
            )
        if set(state["norms"]) != set(self.initial_ranks):
            odd = sorted(set(state["norms"]) ^ set(self.initial_ranks))
            raise ValueError(
                f"the allocator's state is of another model or other target_modules: {len(odd)} names differ, "
                f"e.g. {odd[0]!r}"
            )
        mine = self.config.to_dict()
        differing = [key for key, value in state["config"].items() if mine.get(key) != value]
        if differing:
            raise ValueError(
                "the allocator's state was made with another configuration: "
                + "; ".join(f"{key} was {state['config'][key]!r}, is {mine.get(key)!r}" for key in differing)
                + ". Go on with the old values, or start anew"
            )
        self._average = torch.tensor([state["norms"][name] for name in self.initial_ranks]).to(self._average)
        self._non_finite.fill_(state["non_finite_steps"])
        self.steps = state["steps"]
        self.allocated = state["allocated"]
        self.reallocation = Reallocation(**state["reallocation"]) if state["reallocation"] else None
        if state["ranks"] != self.ranks:
            self._resize({name: state["ranks"][name] for name in self.ranks})
        if self.allocated:
            self._norms = self._pending = None

    def _after_optimizer_step(self) -> None:
        if self._norms is None:
            return
        if self._pending is None:
            raise RuntimeError(
                "optimizer.step() ran without allocator.step() before it, so this step's gradients were not seen and "
                "the ranks would never be allocated; call allocator.step() between loss.backward() and optimizer.step()"
            )
        finite = torch.isfinite(self._pending).all()
        beta = self.config.beta
        self._average = torch.where(finite, beta * self._average + (1 - beta) * self._pending, self._average)
        self._non_finite += ~finite
        self._pending = None
        self.steps += 1
        if self.steps == self.config.warmup_steps:
            self._norms = None
            self._reallocate()

    def _reallocate(self) -> None:
        norms = self.norms
        if skipped := self.non_finite_steps:
            logger.warning(
                "%d of %d warm-up steps had inf or NaN gradients and were left out of the average",
                skipped,
                self.steps,
            )
        if not any(norms.values()):
            logger.warning(
                "no gradient reached any of the %d matrices during the warm-up; the ranks stay as they are and "
                "training goes on as plain LoRA",
                len(norms),
            )
            return
        if silent := [name for name, norm in norms.items() if norm == 0]:
            logger.warning("%d matrices never got a gradient: %s", len(silent), ", ".join(silent))
        before, old = self.parameters, dict(self.ranks)
        self._resize(self.allocate())
        self.allocated = True
        self.reallocation = Reallocation(
            step=self.steps,
            matrices=len(self.ranks),
            changed=sum(self.ranks[name] != old[name] for name in old),
            removed=sum(rank == 0 for rank in self.ranks.values()),
            smallest_rank=min(self.ranks.values()),
            largest_rank=max(self.ranks.values()),
            total_rank=sum(self.ranks.values()),
            parameters_before=before,
            parameters_after=self.parameters,
        )
        logger.info("%s", self.reallocation)

    def _resize(self, ranks: Mapping[str, int]) -> None:
        for name, rank in ranks.items():
            if rank == self.ranks[name]:
                continue
            layer = self._layers[name]
            resize_lora_layer(
                layer,
                rank,
                optimizer=self._optimizer,
                adapter_name=self.adapter_name,
                keep=self.config.keep,
                generator=_generator(self.config.seed, name),
            )
            if rank == 0:
                self._take_out(name, layer)
        self.ranks = dict(ranks)
        if self._peft_config is not None:
            present = {name: layer for name, layer in self._layers.items() if ranks[name] > 0}
            removed = [name for name, rank in ranks.items() if rank == 0]
            describe_ranks(self._peft_config, present, removed, self.adapter_name, self._exclude_modules_before)

    def _take_out(self, name: str, layer: LoraLayer) -> None:
        """Put the base layer back in its place, unless the LoRA layer still serves another adapter."""
        if len(layer.lora_A) == 0:
            parent, _, child = name.rpartition(".")
            setattr(self._root.get_submodule(parent), child, layer.get_base_layer())

    def _allocate(self, scores: Mapping[str, float]) -> dict[str, int]:
        largest = {name: min(shape) for name, shape in self._shapes.items()}
        given: Bound = self.config.max_rank
        if isinstance(given, Mapping):
            caps = {**given, **{name: min(cap, given.get(name, cap)) for name, cap in largest.items()}}
        else:
            caps = {name: cap if given is None else min(cap, given) for name, cap in largest.items()}
        costs = {name: sum(shape) for name, shape in self._shapes.items()}
        return allocate_ranks(
            scores,
            self.total_rank,
            min_rank=self.config.min_rank,
            max_rank=caps,
            costs=costs if self.config.budget == "parameters" else None,
        )

    def _parameters(self, ranks: Mapping[str, int]) -> int:
        return sum(rank * sum(self._shapes[name]) for name, rank in ranks.items())

    def _check_trained(self) -> None:
        frozen = [
            name
            for name, layer in self._layers.items()
            if not holds(self._optimizer, factors(layer, self.adapter_name)[1])
        ]
        if frozen:
            raise ValueError(
                f"the optimiser does not hold lora_B of {len(frozen)} of {len(self._layers)} matrices, "
                f"e.g. {frozen[0]!r}; make the optimiser from the model that is trained, after the adapter was added"
            )


def _generator(seed: int, name: str) -> torch.Generator:
    """New columns depend on the seed and the module's name alone, not on the order of modules or any global state."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
