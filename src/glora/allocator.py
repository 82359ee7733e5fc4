"""The method: LoRA trains as usual for T_warmup optimizer steps, and then every matrix gets its rank.

By rule="gradient_norm", the method as proposed,

    g_k ← β·g_k + (1-β)·‖G_k‖_F     at each step of the warm-up, from g_k = 0
    s_k = g_k / Σ_j g_j              after the last of them
    r_k = round(R_total·s_k)         with Σ r_k = R_total

By rule="spectrum" the warm-up is wide, and one cut through the singular values σ_ki of all Δ_k = s·B_k·A_k keeps the
directions with the largest σ_ki²/c_k, c_k = d_in + d_out (1 under the rank budget), until the budget is spent; rule="uniform"
keeps the first R_total/n directions of every matrix.

`scoring` measures, `allocation` turns measures into ranks, and `lora` gives them to the layers. This file has the warm-up and
the moment of reallocation. A step counts, and its norms enter the average, when the optimizer has made it: steps that a
gradient scaler skips, and micro-batches that are only accumulated, do not.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from glora.allocation.bounds import allocate_within_bounds, cut_within_bounds
from glora.allocation.budget import budget_of_cut, check_budget, check_start, total_rank_of
from glora.allocation.cut import kept_energy
from glora.config import RankAllocationConfig, as_config
from glora.distributed.agreement import Processes
from glora.distributed.unsupported import check_engine
from glora.guards.saved_state import STATE_VERSION, check_saved_state
from glora.guards.setup import check_active, check_held, check_same_adapter, check_same_matrices, check_setup
from glora.guards.training_loop import FirstStep, OtherOptimizer, WarmUp
from glora.lora.adapter import RankedAdapter
from glora.lora.input_gradients import release_input_gradients
from glora.lora.layout import local
from glora.lora.optimizer_state import changes_nothing, skipped_its_step, unwrap_optimizer
from glora.messages import get_logger, pluralize, shortened
from glora.reallocation import Reallocation, warn_of_dominant
from glora.scoring.recorder import NormRecorder
from glora.scoring.sketch_ratios import check_not_compiled
from glora.scoring.spectrum import Spectra, spectra

logger = get_logger()


class RankAllocator:
    """Allocates the ranks of a LoRA adapter once its warm-up is over.

        allocator = RankAllocator(model, optimizer, RankAllocationConfig(warmup_steps=1000))
        for batch in batches:
            model(**batch).loss.backward()
            allocator.step()
            optimizer.step()
            optimizer.zero_grad()

    `step()` reads the norms of the gradients as they are at that moment, so call it where the optimizer would see the
    same: after accumulation, after clipping, after `scaler.unscale_(optimizer)`. The optimizer's own step then adds
    them to the average and, after the last step of the warm-up, the layers are resized before the next forward pass.

    Args:
        model: A PeftModel with a LoRA adapter, or a transformers model after `add_adapter`; or a RankedAdapter. In
            several processes, the result of DistributedDataParallel, `fully_shard` or accelerate's `prepare`.
        optimizer: The optimizer that trains it (accelerate's wrapper is fine).
        config: How to allocate, a RankAllocationConfig or its fields as a dictionary; `warmup_steps` must be an int here.

    Attributes:
        config: The configuration.
        adapter: The RankedAdapter: the matrices and their ranks.
        steps: Optimizer steps recorded so far.
        reallocation: The last reallocation, or None.
        warm_up: Reports a warm-up that training did not last for.

    Raises:
        ValueError: no LoRA, another tuner, an unsupported layer or optimizer, a budget that the bounds cannot meet, a
            warm-up that is not a number of steps, or training in several processes that is not supported.
        TypeError: config has the wrong type.
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
                f"warmup_steps={config.warmup_steps!r} must be a number of steps in your own training loop; only "
                "RankAllocationCallback knows the length of an epoch, or of the training"
            )
        whole = model.model if isinstance(model, RankedAdapter) else model
        check_engine(whole, optimizer)
        self.adapter = adapter = (
            model if isinstance(model, RankedAdapter) else RankedAdapter(model, config.adapter_name)
        )
        if config.signal == "delta_exact" and not config.cuts:
            check_not_compiled(whole)
        self._optimizer = unwrap_optimizer(optimizer)
        check_setup(adapter, self._optimizer, config)
        self._processes = Processes(adapter)

        check_budget(config, adapter)
        self.steps = self._reallocations = 0
        self.reallocation: Reallocation | None = None
        _replace_last(self)
        self._recorder = NormRecorder(adapter.present, config, self._processes)
        self._first_step = FirstStep(self._optimizer, adapter, self._processes)
        self._other = OtherOptimizer(self._optimizer, adapter)
        self._given: dict[str, int] | None = None
        self.warm_up = WarmUp(self._optimizer, config)
        # never compiled with optimizer.step(): the shapes change in there
        after_step = torch.compiler.disable(lambda *_: self._after_optimizer_step())  # type: ignore[no-untyped-call]
        self._hook = self._optimizer.register_step_post_hook(after_step)

    def __repr__(self) -> str:
        """Return one line: the rule, the steps, the ranks."""
        ranks, steps = self.ranks.values(), f"{self.steps} of {self.config.warmup_steps} warm-up steps"
        range_ = f"{sum(ranks):,} ranks from {min(ranks)} to {max(ranks)} in {pluralize(len(ranks), 'matrix')}"
        return f"RankAllocator({self.config.rule}, {steps}, {range_})"

    @property
    def total_rank(self) -> float | None:
        """R_total, a fraction where average_rank·n is one; None where the budget is an energy."""
        return total_rank_of(self.config, self.adapter)

    @property
    def allocated(self) -> bool:
        """True once the ranks have been reallocated."""
        return self._reallocations > 0

    @property
    def in_effect(self) -> bool:
        """True if the model has the ranks of the last reallocation; weights from before it may have been loaded since."""
        return self.allocated and self.ranks == self._given

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
        return self._recorder.average.values

    @property
    def scores(self) -> dict[str, float]:
        """s_k = g_k / Σ_j g_j; all zero before the first step. Reading it waits for the device."""
        norms = self.norms
        total = sum(norms.values())
        return {name: norm / total if total else 0.0 for name, norm in norms.items()}

    @property
    def non_finite_steps(self) -> int:
        """Steps whose gradients held inf or NaN, and which the average left out. Reading it waits for the device."""
        return self._recorder.average.left_out

    @property
    def recording(self) -> bool:
        """True while norms are averaged for a reallocation to come."""
        return self._recorder.recording

    def step(self) -> None:
        """Read the gradient norms of this step; call it after backward() and before optimizer.step().

        Raises:
            ValueError: at the first step, an adapter that starts no wider than a cut would leave it.
            RuntimeError: there are no gradients, the adapter is not active, or another optimizer has made the last step.
        """
        if self.recording:
            if self.steps == 0 and self._first_step.pending:
                check_start(self.config, self.adapter)
            check_active(self.adapter)
            self._other.check(self._recorder.pending)
            self._recorder.read()
            self._first_step.note_gradients()

    def allocate(self, learned: Spectra | None = None) -> dict[str, int]:
        """Return the ranks that the present norms, or spectra, give under the budget and the bounds; nothing is changed.

        A subclass may allocate by another rule, and read `norms`, `scores` and the adapter for it. In several processes only
        process 0 calls it at the reallocation, so it must not communicate with the others.

        Args:
            learned: For the rules that cut, the singular values of each Δ_k. Default: computed now, which with FSDP2 every
                process has to do.
        """
        if self.total_rank is not None and not self.config.cuts:
            return allocate_within_bounds(self.adapter, self.config, int(self.total_rank), self.norms)
        learned = spectra(self.adapter.present) if learned is None else learned
        budget = budget_of_cut(self.config, self.adapter, self._reallocations + 1)
        return cut_within_bounds(self.adapter, self.config, learned, **budget)

    def describe_skipped(self) -> str:
        """Describe the gradients that were read without a following optimizer step; empty if there were none.

        A gradient scaler skips the steps in which it finds inf or NaN. Waits for the device.
        """
        return self._recorder.describe_skipped()

    def detach(self) -> None:
        """Stop listening to the optimizer and to the layers. The ranks stay as they are."""
        self._hook.remove()
        self._first_step.detach()
        self._processes.detach()
        self._recorder.stop()
        self.warm_up.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as plain values fit for JSON."""
        return {
            "version": STATE_VERSION,
            "config": self.config.to_dict(),
            "steps": self.steps,
            **self._recorder.state_dict(),
            "allocated": self.allocated,
            "reallocations": self._reallocations,
            "initial_ranks": self.initial_ranks,
            "scalings": self.adapter.scalings,
            "ranks": self.ranks,
            "reallocation": dataclasses.asdict(self.reallocation) if self.reallocation else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`.

        If the ranks had been reallocated by then, the layers are resized to them. Load the weights of the model and the
        state of the optimizer afterwards.

        Raises:
            ValueError: the state is damaged, or of another version, model or configuration.
        """
        check_saved_state(state)
        check_same_matrices(state["ranks"], self.adapter)
        if differing := self.config.differences(state["config"]):
            raise ValueError(
                f"the allocator's state was made with another configuration: {differing}. Resume with the old values, or "
                "start a new run"
            )
        check_same_adapter(state, self.adapter)
        if state["ranks"] != self.ranks:
            self._processes.check_wrapper_is_known()
            self.adapter.set_ranks(state["ranks"], optimizer=self._optimizer)
            check_held(self.adapter, self._optimizer)
        self._given = dict(state["ranks"]) if state["allocated"] else None
        if state["allocated"]:
            release_input_gradients(self.adapter.root, self.adapter.input_hooks)
        self.adapter.resume_from(state["initial_ranks"])
        self.reallocation = Reallocation(**state["reallocation"]) if state["reallocation"] else None
        self.steps, self._reallocations = state["steps"], state["reallocations"]
        self.warm_up.count(self.steps)
        self._recorder.stop()
        # In the model's order, in which the norms are read; JSON may have sorted the names.
        names = [name for name in self.adapter.matrices if name in state["norms"]]
        self._record(names=names, recording=state["recording"])
        self._recorder.load_state_dict(state)

    def _record(self, **options: Any) -> None:
        """Start a new average over the matrices that have an adapter."""
        self._recorder = NormRecorder(self.adapter.present, self.config, self._processes, self.steps, **options)

    def _after_optimizer_step(self) -> None:
        if not (self.recording or self._first_step.pending) or skipped_its_step(self._optimizer):
            return
        if self._recorder.pending is None and changes_nothing(self._optimizer):
            return  # torch's set_optimizer_state_dict makes the optimizer's state by such a step
        if self.recording:
            self._recorder.take()
            self.steps += 1
        self._first_step.after_step()
        self.warm_up.count(self.steps)
        if self.recording and self._is_due():
            self._reallocate()

    def _is_due(self) -> bool:
        since, every = self.steps - self.warm_up.steps, self.config.reallocate_every
        recorded = self._recorder.average.steps
        if since < 0 or every is None or recorded > since:  # an average from before the end of the warm-up
            return since >= 0
        return recorded >= every and self._reallocations_left()  # more than `every` after an interrupted reallocation

    def _reallocations_left(self) -> bool:
        most = self.config.max_reallocations
        return self.config.reallocate_every is not None and (most is None or self._reallocations < most)

    def _reallocate(self) -> None:
        old, costs, diverged = self.ranks, self.adapter.costs, self._diverged()
        learned = spectra(self.adapter.present) if self.config.cuts and not diverged else {}
        diverged += [name for name, values in learned.items() if not all(map(math.isfinite, values))]
        ranks = self._processes.decide(lambda: self._new_ranks(diverged, learned), list(old))
        if ranks is not None:
            seed = f"{self.config.seed}/{self._reallocations}"  # a matrix that grows twice must not draw the same rows
            how: dict[str, Any] = dict(keep=self.config.columns_kept, seed=seed, share=self._processes.share)
            kept = kept_energy(learned, ranks) if learned else None
            made = Reallocation.between(self.steps, old, ranks, costs, kept)
            try:
                self.adapter.set_ranks(ranks, optimizer=self._optimizer, **how)
            finally:  # Ctrl-C that waited for the change comes out of it
                if self.ranks == ranks:
                    self._reallocations, self._given, self.reallocation = self._reallocations + 1, dict(ranks), made
                    self._record_on()
            self._processes.check_shared(ranks)
            if self._processes.size > 1:
                self._first_step = FirstStep(self._optimizer, self.adapter, self._processes)
            release_input_gradients(self.adapter.root, self.adapter.input_hooks)
            logger.info("%s", made)
            warn_of_dominant(old, ranks, costs)
        else:
            self._record_on()

    def _record_on(self) -> None:
        """Start an average for the next reallocation, if there is one."""
        self._recorder.stop()
        if self._reallocations_left():
            self._record()

    def _new_ranks(self, diverged: list[str], learned: Spectra) -> dict[str, int] | None:
        """Return the ranks after the warm-up, and warn of what is odd; None leaves the ranks as they are."""
        average, norms = self._recorder.average, self.norms
        recorded, left_out = average.steps, average.left_out
        if left_out:
            logger.warning(
                "%d of %d warm-up steps had inf or NaN gradients and were left out of the average: %s",
                left_out,
                recorded,
                shortened(average.ever_non_finite),
            )
        if diverged:
            matrices = pluralize(len(diverged), "matrix")
            why = f"the weights of {matrices} hold inf or NaN; the ranks stay as they are: {shortened(diverged)}"
        elif self.config.cuts:
            if any(map(any, learned.values())):
                return self.allocate(learned)
            why = "the warm-up has learned nothing (every Δ is 0), so the adapter stays wide; raise warmup_steps"
        elif any(norms.values()):
            if silent := [name for name, norm in norms.items() if norm == 0]:
                logger.warning("%s never got a gradient: %s", pluralize(len(silent), "matrix"), shortened(silent))
            return self.allocate()
        elif left_out < recorded:
            matrices = pluralize(len(norms), "matrix")
            why = f"no gradient reached the {matrices} during the warm-up; the ranks stay as they are, this is plain LoRA: "
            why += shortened(list(norms))
        else:
            why = "so there is no average; the ranks stay as they are, this is plain LoRA"
        logger.warning("%s", why)
        return None

    def _diverged(self) -> list[str]:
        """Return the matrices whose weights hold inf or NaN."""
        finite = [torch.isfinite(local(factor.detach())).all().cpu() for factor in self.adapter.factors]
        sound = self._processes.all_agree(torch.stack(finite).view(-1, 2).all(1))
        return [matrix.name for matrix, ok in zip(self.adapter.present, sound.tolist()) if not ok]


class _Last(weakref.ref[RankAllocator]):
    """A weak reference that a copied or saved model comes without."""

    def __reduce__(self) -> Any:
        return type(None), ()


def _replace_last(allocator: RankAllocator) -> None:
    """Detach the adapter's last allocator if it listens to another optimizer, so that its hooks do not leak.

    That training was broken off, as in a notebook whose cell is run again.
    """
    of_model: dict[str, _Last | None] = vars(allocator.adapter.root).setdefault("_glora_allocators", {})
    reference = of_model.get(allocator.adapter.name)
    last = None if reference is None else reference()
    if last is not None and last._optimizer is not allocator._optimizer:
        last.detach()
    of_model[allocator.adapter.name] = _Last(allocator)
