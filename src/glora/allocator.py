"""The method: norms are averaged while LoRA trains as usual, and once the warm-up is over every matrix gets its rank.

This is where the three parts meet: gradient_norms reads ‖G_k‖_F, rank_allocation turns the averages into ranks, resize
gives them to the layers. Here lie the moving average, the warm-up and the moment of reallocation:

    g_k ← β·g_k + (1-β)·‖G_k‖_F     at each of the first T_warmup optimizer steps, from g_k = 0
    s_k = g_k / Σ_j g_j              after the last of them
    r_k = round(R_total·s_k)         with Σ r_k = R_total

A step is pluralize, and its norms enter the average, when the optimizer has really made it: what a gradient scaler skips,
or a micro-batch that is only accumulated, never does.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from glora.allocation.bounds import allocate_within_bounds
from glora.allocation.reallocation import Reallocation
from glora.config import RankAllocationConfig, as_config
from glora.distributed.agreement import Processes
from glora.distributed.unsupported import refuse_engines
from glora.guards.first_step import FirstStep
from glora.guards.same_gradients import SameGradients
from glora.guards.unfinished_warmup import watch
from glora.lora.adapter import RankedAdapter
from glora.lora.input_gradients import release_input_gradients
from glora.lora.layout import is_sharded, local
from glora.lora.optimizer_state import check_optimizer, holds, skipped_its_step, unwrap_optimizer
from glora.messages import get_logger, pluralize
from glora.scoring.gradient_norms import GradientNorms
from glora.scoring.norm_average import NormAverage
from glora.scoring.sketch_ratios import SketchRatios, refuse_compiled

logger = get_logger()
STATE_VERSION = 1
PATIENCE = 100  # steps that are read and not made, before the first that is, until the user hears of it

# The last allocator of each adapter, by the base model and the adapter's name.
_ALLOCATORS: weakref.WeakKeyDictionary[nn.Module, dict[str, weakref.ref[RankAllocator]]] = weakref.WeakKeyDictionary()


class RankAllocator:
    """Allocates the ranks of a LoRA adapter once its warm-up is over.

        allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1000))
        for batch in batches:
            model(**batch).loss.backward()
            allocator.step()
            optimizer.step()
            optimizer.zero_grad()

    `step()` reads the norms of the gradients as they are at that moment, so call it where the optimizer would see the
    same: after accumulation, after clipping, after `scaler.unscale_(optimizer)`. The optimizer's own step then takes
    them into the average and, after the last step of the warm-up, the layers are resized before the next forward pass.

    Args:
        model: A PeftModel with a LoRA adapter, or a transformers model after `add_adapter`; or a RankedAdapter. In
            several processes, what DistributedDataParallel, `fully_shard` or accelerate's `prepare` returned.
        optimizer: The optimizer that trains it (accelerate's wrapper is fine).
        config: How to allocate, a RankAllocationConfig or its fields as a dictionary; `warmup_steps` must be an int here.

    Attributes:
        adapter: The RankedAdapter: the matrices and their ranks.
        total_rank: R_total.
        allocated: Whether the ranks have been reallocated.
        steps: Optimizer steps recorded so far.
        reallocation: What happened at the last reallocation, or None.

    Raises:
        ValueError: no LoRA, another tuner, an unsupported layer or optimizer, a budget that the bounds cannot meet, a
            warm-up that is not a number of steps, or a way to train in several processes that is not supported.
        TypeError: the configuration is none.
    """

    def __init__(
        self,
        model: nn.Module | RankedAdapter,
        optimizer: torch.optim.Optimizer,
        config: RankAllocationConfig | Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config = as_config(config)
        if not isinstance(config.warmup_steps, int):
            raise ValueError(
                f"warmup_steps={config.warmup_steps!r} must be a number of steps in a loop of one's own; only "
                "RankAllocationCallback knows how long an epoch, or the whole training, is"
            )
        self._warmup_steps: int = config.warmup_steps
        refuse_engines(model.model if isinstance(model, RankedAdapter) else model, optimizer)
        self.adapter = model if isinstance(model, RankedAdapter) else RankedAdapter(model, config.adapter_name)
        if config.signal == "delta_exact":
            refuse_compiled(self.adapter.root if isinstance(model, RankedAdapter) else model)
        self._check_method()
        self._optimizer = unwrap_optimizer(optimizer)
        check_optimizer(self._optimizer)
        self._check_trained()
        self._processes = Processes(self.adapter)
        self._same_gradients = SameGradients(self._optimizer, self._processes, self._parameters)

        default = sum(self.adapter.initial_ranks.values())
        self.total_rank = config.total_rank if config.total_rank is not None else default
        self.allocated = False
        self.reallocation: Reallocation | None = None
        self.steps = 0
        self._reallocations = 0
        # Bounds that cannot be met are refused now, not after the warm-up.
        allocate_within_bounds(self.adapter, config, self.total_rank, dict.fromkeys(self.adapter.matrices, 1.0))

        self._norms: GradientNorms | None = None
        self._ratios: SketchRatios | None = None
        self._pending: torch.Tensor | None = None
        self._succeed()
        self._listen()
        self.warm_up = watch(self._warmup_steps)
        self._first_step = FirstStep(self._optimizer, self._parameters)
        self._hook = self._optimizer.register_step_post_hook(lambda *_: self._after_optimizer_step())

    @property
    def ranks(self) -> dict[str, int]:
        """r_k, by the matrix's name relative to the base model; 0 where the adapter was taken out."""
        return self.adapter.ranks

    @property
    def initial_ranks(self) -> dict[str, int]:
        """The ranks before any reallocation."""
        return dict(self.adapter.initial_ranks)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of each matrix."""
        return {name: matrix.shape for name, matrix in self.adapter.matrices.items()}

    @property
    def parameters(self) -> int:
        """Parameters of the adapter at the present ranks: Σ r_k·(d_in + d_out)."""
        return self.adapter.parameters

    @property
    def norms(self) -> dict[str, float]:
        """g_k, the moving average of ‖G_k‖_F, of every matrix that has an adapter. Reading it waits for the device."""
        return self._average.values

    @property
    def scores(self) -> dict[str, float]:
        """s_k = g_k / Σ_j g_j; all zero before the first step. Reading it waits for the device."""
        norms = self.norms
        total = sum(norms.values())
        return {name: norm / total if total else 0.0 for name, norm in norms.items()}

    @property
    def non_finite_steps(self) -> int:
        """Steps whose gradients held inf or NaN, and which the average left out. Reading it waits for the device."""
        return self._average.left_out

    @property
    def recording(self) -> bool:
        """Whether norms are being averaged for a reallocation to come."""
        return self._norms is not None

    def step(self) -> None:
        """Read the gradient norms of this step; call it after backward() and before optimizer.step().

        Raises:
            RuntimeError: there are no gradients.
        """
        if self._norms is None:
            return
        if self._pending is not None:
            self._skipped.add(self._pending)
            self._pending = None
            if self._skipped.steps == PATIENCE and self.steps == 0:
                logger.warning("%s", self.describe_skipped())
        if self._ratios is not None and self._measures_this_step():
            self._ratios.measure()
        self._pending = self._norms.read(self._ratios.ratios if self._ratios is not None else None)
        self._first_step.read()

    def allocate(self) -> dict[str, int]:
        """The ranks that the present scores give under the budget and the bounds; nothing is changed.

        A subclass may allocate by a rule of its own, and read `norms`, `scores` and the adapter for it. In several processes
        process 0 alone asks it at the reallocation, so it must not call the others.
        """
        return allocate_within_bounds(self.adapter, self.config, self.total_rank, self.norms)

    def describe_skipped(self) -> str:
        """What to tell of gradients that were read and that no optimizer step followed; empty if there were none.

        A gradient scaler skips the steps in which it finds inf or NaN. Waits for the device.
        """
        skipped, found = self._skipped.steps, self._skipped.ever_non_finite
        if self._pending is not None:
            last = torch.isfinite(self._pending).tolist()
            skipped, found = skipped + 1, found or [n for n, ok in zip(self._skipped.names, last) if not ok]
        if not skipped:
            return ""
        where = (
            f"; a gradient scaler skips steps with inf or NaN, which were found in {_listing(found)}" if found else ""
        )
        return f"the gradients were read {pluralize(skipped, 'time')}, and optimizer.step() did not follow{where}"

    def detach(self) -> None:
        """Stop listening: to the optimizer, and to the layers. The ranks stay as they are."""
        self._hook.remove()
        self._first_step.detach()
        self._same_gradients.detach()
        self._processes.detach()
        self._stop_recording()
        self.warm_up.over()

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as plain values fit for JSON."""
        ratios = self._ratios.ratios.tolist() if self._ratios is not None else None
        return {
            "version": STATE_VERSION,
            "config": self.config.to_dict(),
            "steps": self.steps,
            **self._average.state_dict(),
            # NaN, a ratio that was not measured, is not JSON
            "sketch_ratios": None if ratios is None else [None if math.isnan(x) else x for x in ratios],
            "allocated": self.allocated,
            "recording": self.recording,
            "reallocations": self._reallocations,
            "initial_ranks": self.initial_ranks,
            "ranks": self.ranks,
            "reallocation": dataclasses.asdict(self.reallocation) if self.reallocation else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict()` was taken.

        If the ranks had been reallocated by then, the layers are resized to them. Load the weights of the model and the
        state of the optimizer afterwards.

        Raises:
            ValueError: the state is of another version, model or configuration.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"the allocator's state has version {state.get('version')!r}; this glora reads {STATE_VERSION}"
            )
        check_same_matrices(state["ranks"], self.adapter)
        if differing := self.config.differences(state["config"]):
            raise ValueError(
                f"the allocator's state was made with another configuration: {differing}. Go on with the old values, "
                "or start anew"
            )
        if state["ranks"] != self.ranks:
            self._processes.check_wrapper_is_known()
            self.adapter.set_ranks(state["ranks"], optimizer=self._optimizer)
        if state["allocated"]:
            release_input_gradients(self.adapter.root)
        self.adapter.initial_ranks = {name: state["initial_ranks"][name] for name in self.adapter.matrices}
        if self.config.total_rank is None:
            self.total_rank = sum(self.adapter.initial_ranks.values())
        self.allocated = state["allocated"]
        self.reallocation = Reallocation(**state["reallocation"]) if state["reallocation"] else None
        self.steps, self._reallocations = state["steps"], state["reallocations"]
        self.warm_up.made = self.steps
        if self.steps >= self._warmup_steps:
            self.warm_up.over()
        self._stop_recording()
        # In the model's order, in which the norms are read; JSON may have sorted the names.
        names = tuple(name for name in self.adapter.matrices if name in state["norms"])
        self._listen(recording=state["recording"], names=names)
        self._average.load_state_dict(state)
        if self._ratios is not None and state["sketch_ratios"] is not None:
            ratios = [math.nan if x is None else x for x in state["sketch_ratios"]]
            self._ratios.ratios.copy_(torch.tensor(ratios))

    def _listen(self, *, recording: bool = True, names: tuple[str, ...] | None = None) -> None:
        """Start a fresh average over the matrices that have an adapter."""
        norms = GradientNorms(self.adapter.present, self.config.signal)
        self._average = NormAverage(names or norms.names, self.config.beta, norms.device)
        self._skipped = NormAverage(norms.names, self.config.beta, norms.device)
        if not recording:
            return
        self._norms = norms
        if self.config.signal == "delta_exact":
            self._ratios = SketchRatios(self.adapter.present, norms.device, self._processes)
            if self._measures_this_step():
                self._ratios.arm()

    def _succeed(self) -> None:
        """Detach the adapter's last allocator if it listens to another optimizer: that training was broken off.

        It would never hear of a step again, and what it hung on the layers to measure would stay there.
        """
        of_model = _ALLOCATORS.setdefault(self.adapter.root, {})
        last = of_model[self.adapter.name]() if self.adapter.name in of_model else None
        if last is not None and last._optimizer is not self._optimizer:
            last.detach()
        of_model[self.adapter.name] = weakref.ref(self)

    def _stop_recording(self) -> None:
        self._norms = self._pending = None
        if self._ratios is not None:
            self._ratios.disarm()
            self._ratios = None

    def _measures_this_step(self) -> bool:
        return self.steps % self.config.exact_every == 0

    def _after_optimizer_step(self) -> None:
        self._same_gradients.after_step()
        if self._norms is None or skipped_its_step(self._optimizer):
            return
        if self._pending is None:
            raise RuntimeError(
                "optimizer.step() ran without allocator.step() before it, so this step's gradients were not seen and "
                "the ranks would never be allocated; call allocator.step() between loss.backward() and optimizer.step(). (An "
                "allocator that was made earlier for this optimizer listens until its detach().)"
            )
        self._first_step.made()
        self._average.add(self._pending)
        self._pending = None
        self.steps += 1
        self.warm_up.made = self.steps
        if self._ratios is not None:
            self._ratios.disarm()
            if self._measures_this_step():
                self._ratios.arm()
        if self._is_due():
            self._reallocate()

    def _is_due(self) -> bool:
        since, every = self.steps - self._warmup_steps, self.config.reallocate_every
        return since == 0 or (since > 0 and every is not None and since % every == 0 and self._reallocations_left())

    def _reallocations_left(self) -> bool:
        most = self.config.max_reallocations
        return self.config.reallocate_every is not None and (most is None or self._reallocations < most)

    def _reallocate(self) -> None:
        self.warm_up.over()
        norms = self.norms
        before, old, diverged = self.parameters, self.ranks, self._diverged()
        ranks = self._processes.decide(lambda: self._new_ranks(norms, diverged), list(old))
        self._stop_recording()
        if ranks is not None:
            seed = f"{self.config.seed}/{self._reallocations}"  # a matrix that grows twice must not draw the same rows
            share = self._processes.share
            self.adapter.set_ranks(ranks, optimizer=self._optimizer, keep=self.config.keep, seed=seed, share=share)
            self._processes.check_shared(ranks)
            self._same_gradients = SameGradients(self._optimizer, self._processes, self._parameters)
            release_input_gradients(self.adapter.root)
            self._reallocations += 1
            self.allocated = True
            self.reallocation = Reallocation(
                step=self.steps,
                matrices=len(ranks),
                changed=sum(ranks[name] != old[name] for name in old),
                removed=sum(rank == 0 for rank in ranks.values()),
                smallest_rank=min(ranks.values()),
                largest_rank=max(ranks.values()),
                total_rank=sum(ranks.values()),
                parameters_before=before,
                parameters_after=self.parameters,
            )
            logger.info("%s", self.reallocation)
        if self._reallocations_left():
            self._listen()

    def _new_ranks(self, norms: Mapping[str, float], diverged: list[str]) -> dict[str, int] | None:
        """What the warm-up leads to, with a word where something was odd; None leaves the ranks as they are."""
        recorded, left_out = self._average.steps, self.non_finite_steps
        if left_out:
            logger.warning(
                "%d of %d warm-up steps had inf or NaN gradients and were left out of the average: %s",
                left_out,
                recorded,
                _listing(self._average.ever_non_finite),
            )
        if diverged:
            logger.warning(
                "the weights of %s hold inf or NaN; the ranks stay as they are: %s",
                pluralize(len(diverged), "matrix"),
                _listing(diverged),
            )
        elif any(norms.values()):
            if silent := [name for name, norm in norms.items() if norm == 0]:
                logger.warning("%s never got a gradient: %s", pluralize(len(silent), "matrix"), _listing(silent))
            return self.allocate()
        elif left_out < recorded:
            logger.warning(
                "no gradient reached the %s during the warm-up; the ranks stay as they are and "
                "training goes on as plain LoRA: %s",
                pluralize(len(norms), "matrix"),
                _listing(list(norms)),
            )
        else:
            logger.warning("so there is no average; the ranks stay as they are and training goes on as plain LoRA")
        return None

    def _parameters(self) -> list[nn.Parameter]:
        return self.adapter.factors

    def _diverged(self) -> list[str]:
        """The matrices whose weights hold inf or NaN."""
        names = [matrix.name for matrix in self.adapter.present]
        sound = (
            torch.stack([torch.isfinite(local(p.detach())).all().cpu() for p in self._parameters()]).view(-1, 2).all(1)
        )
        return [name for name, ok in zip(names, self._processes.all_agree(sound).tolist()) if not ok]

    def _check_method(self) -> None:
        """Refuse, or warn of, settings that do not go with this adapter."""
        stack = next((name for name, matrix in self.adapter.matrices.items() if matrix.experts > 1), None)
        if self.config.keep == "svd" and stack is not None:
            raise ValueError(f'{stack}: keep="svd" is for one matrix, and this is a stack of experts; use keep="norm"')
        if self.config.signal == "delta_exact" and any(map(is_sharded, self._parameters())):
            raise ValueError(
                'signal="delta_exact" needs whole factors and gradients, and fully_shard spreads them over the processes; use '
                'signal="delta"'
            )
        if self.config.signal == "delta" and self.adapter.initialization == "eva":
            logger.warning(
                "with init_lora_weights='eva' A follows the inputs and is no random sketch, so signal='delta' reads "
                "too large, by a factor of its own for each matrix; use RankAllocationConfig(signal='delta_exact')"
            )

    def _check_trained(self) -> None:
        frozen, unknown = [], []
        for matrix in self.adapter.present:
            if not matrix.zero_factor.requires_grad:
                frozen.append(matrix.name)
            elif not holds(self._optimizer, matrix.zero_factor):
                unknown.append(matrix.name)
        if frozen:
            raise ValueError(
                f"the adapter of {len(frozen)} of {len(self.adapter.matrices)} matrices is frozen, e.g. of {frozen[0]!r}: "
                "without a gradient it would lose its ranks to the others, and what it has learned; let lora_A and lora_B "
                "require gradients there, or give the matrices that are trained an adapter of their own"
            )
        if unknown:
            raise ValueError(
                f"the optimizer does not hold lora_B of {len(unknown)} of {len(self.adapter.matrices)} matrices, "
                f"e.g. {unknown[0]!r}; make the optimizer from the model that is trained, after the adapter was added"
            )


def check_same_matrices(names: Iterable[str], adapter: RankedAdapter) -> None:
    """Refuse a saved state of other matrices than this adapter's.

    Raises:
        ValueError: the names differ.
    """
    if odd := sorted(set(names) ^ set(adapter.matrices)):
        raise ValueError(
            f"the allocator's state is of another model or other target_modules, by {pluralize(len(odd), 'name')}, e.g. "
            f"{odd[0]!r}. Make the model as the run began, with the same LoraConfig: loading gives it its ranks"
        )


def _listing(names: list[str]) -> str:
    shown = 6
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
