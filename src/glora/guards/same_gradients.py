"""Processes that train apart: their gradients differ at the first step after the start, or after a reallocation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from glora.distributed.agreement import Processes


class SameGradients:
    """Compare the gradients of all processes at the optimizer's next step, once.

    Args:
        optimizer: The optimizer, without accelerate's wrapper.
        processes: The processes.
        parameters: Returns the adapter's parameters as they are at that step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, processes: Processes, parameters: Callable[[], list[nn.Parameter]]
    ) -> None:
        self._processes, self._parameters = processes, parameters
        self._checked = False
        self._hook: RemovableHandle | None = None
        if processes.size > 1:
            self._hook = optimizer.register_step_pre_hook(lambda *_: self._check())

    def after_step(self) -> None:
        """Detach once the optimizer has made the step that was checked."""
        if self._checked:
            self.detach()

    def detach(self) -> None:
        """Stop watching the optimizer."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _check(self) -> None:
        if not self._checked:
            self._processes.check_gradients(self._parameters())
            self._checked = True
