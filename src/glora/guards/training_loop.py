"""Mistakes that only the first optimizer step, or the end of training, can show.

At the first step an optimizer makes its state, a gradient scaler or a clipping in the wrong place changes the gradients that
were read, and processes that train apart have different gradients. Checking at once reports a mistake after one step and not
after the warm-up. At the end, a warm-up that is longer than training leaves plain LoRA.
"""

from __future__ import annotations

import math
import weakref

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.config import RankAllocationConfig
from glora.distributed.agreement import Processes
from glora.lora.adapter import RankedAdapter
from glora.lora.layout import local
from glora.lora.optimizer_state import check_optimizer
from glora.messages import get_logger, is_main_process

logger = get_logger()


class FirstStep:
    """Check the optimizer's next step, once: its gradients, before it is made, and its state afterwards."""

    def __init__(self, optimizer: torch.optim.Optimizer, adapter: RankedAdapter, processes: Processes) -> None:
        self._optimizer, self._adapter, self._processes = optimizer, adapter, processes
        self._size: torch.Tensor | None = None
        # Before the step: some optimizers write into the gradients (schedule-free's, for one).
        before_step = torch.compiler.disable(lambda *_: self._before_step())  # type: ignore[no-untyped-call]
        self._hook: RemovableHandle | None = optimizer.register_step_pre_hook(before_step)

    @property
    def pending(self) -> bool:
        """True while the step is still to come."""
        return self._hook is not None

    def note_gradients(self) -> None:
        """Note the size of the gradients as they are now; the last note before the step counts."""
        if self._hook is not None:
            self._size = self._gradient_size()

    def after_step(self) -> None:
        """Check the state that the optimizer has made, and stop watching."""
        if self._hook is not None:
            self.detach()
            check_optimizer(self._optimizer)

    def detach(self) -> None:
        """Stop watching."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _before_step(self) -> None:
        self._processes.check_gradients(self._adapter.factors)
        if self._size is None:
            return
        sizes = torch.stack([self._size, self._gradient_size().to(self._size.device)])
        was, now = sizes.tolist()  # the one wait for the device
        # A fused optimizer is given the scale and divides by it itself.
        scale = getattr(self._optimizer, "grad_scale", None)
        change = now / (was * (1.0 if scale is None else float(scale))) if was else math.nan
        if math.isfinite(was) and math.isfinite(change) and abs(change - 1) > 1e-3:
            logger.warning(
                "the gradients changed by a factor of %.3g between allocator.step() and optimizer.step(), so the norms are "
                "not of what the optimizer uses; call allocator.step() after scaler.unscale_(optimizer) and after clipping",
                change,
            )

    def _gradient_size(self) -> torch.Tensor:
        gradients = [p.grad for p in self._adapter.factors if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = torch._foreach_norm([local(gradient) for gradient in gradients], 2, dtype=torch.float32)
        return torch.stack([norm.to(gradients[0].device) for norm in norms]).square().sum().sqrt()


class OtherOptimizer:
    """Notice an optimizer that was made in place of the one given: it moves the weights, and no step is ever counted.

    PyTorch counts the writes into a tensor (`_version`), so that nobody waits for the device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, adapter: RankedAdapter) -> None:
        self._name, self._adapter = type(optimizer).__name__, adapter
        self._read: list[tuple[nn.Parameter, int]] = []

    def check(self, pending: torch.Tensor | None) -> None:
        """Check, before a step's gradients are read, that nothing has moved the weights since the last ones were.

        Args:
            pending: The norms that were read last, if the optimizer that was given has not stepped since. With inf or NaN among
                them a gradient scaler skipped the step, and something else, such as an average of the weights, moved them.
        """
        moved = bool(self._read) and all(factor._version > version for factor, version in self._read)
        if pending is not None and moved and bool(pending.isfinite().all()):
            raise RuntimeError(
                f"the weights changed without a step of the {self._name} that RankAllocator was given: another optimizer "
                "trains them. Make a new RankAllocator with it, which continues by load_state_dict(this one's state_dict())"
            )
        self._read = [(factor, factor._version) for factor in self._adapter.factors if factor.grad is not None]


class WarmUp:
    """Report a training that ended before its warm-up or its last cut, when the optimizer is dropped or the process ends.

    Trainer says when training ends. Your own training loop just stops.

    Args:
        optimizer: The optimizer; of several processes, only the first reports.
        config: The configuration, whose `warmup_steps` is an int.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: RankAllocationConfig) -> None:
        assert isinstance(config.warmup_steps, int)
        self.steps, self.steps_made, self.config = config.warmup_steps, 0, config
        self._end = weakref.finalize(optimizer, _report_unfinished, self)
        if not is_main_process():
            self._end.detach()

    def count(self, steps: int) -> None:
        """Note the steps made; after the last cut there is nothing to report."""
        self.steps_made = steps
        if steps >= self.config.last_cut(self.steps):
            self.finish()

    def finish(self) -> None:
        """Report nothing at the end: it is reported elsewhere, or there is nothing left."""
        self._end.detach()


def describe_unfinished(config: RankAllocationConfig, steps: int) -> str:
    """Return what a training that ended after these steps has not reached; nothing if it was long enough."""
    warmup = config.warmup_steps
    assert isinstance(warmup, int)
    if steps < warmup:
        width = " of the rank that it started with" if config.cuts else ""
        return (
            f"training ended after {steps} of {warmup} warm-up steps: the ranks were not reallocated, this is plain "
            f"LoRA{width}"
        )
    if steps < (last := config.last_cut(warmup)):
        return (
            f"training ended after {steps} steps, before the last of {config.max_reallocations} cuts at step {last}: the "
            "adapter is larger than its budget"
        )
    return ""


def _report_unfinished(warm_up: WarmUp) -> None:
    if warm_up.steps_made > 0 and (unfinished := describe_unfinished(warm_up.config, warm_up.steps_made)):
        logger.warning("%s; lower warmup_steps=%d, train for longer, or resume", unfinished, warm_up.steps)
