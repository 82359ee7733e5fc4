"""What only the first optimizer step can show: that its gradients are those that were read, and that its state can follow.

An optimizer makes its state at its first step, and a gradient scaler or a clipping in the wrong place shows when it takes its
gradients. Both are looked at once, so that a mistake is told after one step and not after the warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.lora.layout import local
from glora.lora.optimizer_state import check_optimizer
from glora.messages import get_logger

logger = get_logger()


class FirstStep:
    """Watches an optimizer until it has made one step.

    Args:
        optimizer: The optimizer, without accelerate's wrapper.
        parameters: Gives the adapter's parameters as they are at that moment.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Callable[[], list[nn.Parameter]]) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._size: torch.Tensor | None = None
        # Before the step: some optimizers write into the gradients (schedule-free's, for one).
        self._hook: RemovableHandle | None = optimizer.register_step_pre_hook(lambda *_: self._compare())

    def read(self) -> None:
        """Note what the gradients are now; the last note before the step counts."""
        if self._hook is not None:
            self._size = self._gradient_size()

    def made(self) -> None:
        """The optimizer has made its step.

        Raises:
            ValueError: its state cannot follow a parameter to another shape.
        """
        if self._hook is not None:
            self.detach()
            check_optimizer(self._optimizer)

    def detach(self) -> None:
        """Stop watching."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _compare(self) -> None:
        if self._size is None:
            return
        was, now = torch.stack(
            [self._size, self._gradient_size().to(self._size.device)]
        ).tolist()  # the one wait for the device
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
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        norms = torch._foreach_norm([local(gradient) for gradient in gradients], 2, dtype=torch.float32)
        return torch.stack([norm.to(gradients[0].device) for norm in norms]).square().sum().sqrt()
