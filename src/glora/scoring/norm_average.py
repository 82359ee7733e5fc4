"""The moving average of the gradient norms, over the steps whose norms are all finite.

    g_k ← β·g_k + (1-β)·‖G_k‖_F     from g_k = 0

It stays on the device and waits for nothing until somebody asks for its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


class NormAverage:
    """g_k of every matrix.

    Args:
        names: The matrices, in the order in which norms are added.
        beta: β.
        device: Where the norms are.

    Attributes:
        names: The matrices.
        steps: Steps added so far, those that were left out included.
    """

    def __init__(self, names: Sequence[str], beta: float, device: torch.device) -> None:
        self.names, self._beta, self.steps = tuple(names), beta, 0
        self._values = torch.zeros(len(self.names), dtype=torch.float32, device=device)
        self._left_out = torch.zeros((), dtype=torch.int64, device=device)
        self._non_finite = torch.zeros(len(self.names), dtype=torch.int64, device=device)

    def add(self, norms: torch.Tensor) -> None:
        """Take in the norms of one step, shape (n,); a step with inf or NaN is counted and left out."""
        finite = torch.isfinite(norms)
        average = self._beta * self._values + (1 - self._beta) * norms
        self._values = torch.where(finite.all(), average, self._values)
        self._left_out += ~finite.all()
        self._non_finite += ~finite
        self.steps += 1

    @property
    def values(self) -> dict[str, float]:
        """g_k by name. Waits for the device, as all properties do."""
        return dict(zip(self.names, self._values.tolist()))

    @property
    def left_out(self) -> int:
        """How many steps were left out."""
        return int(self._left_out.item())

    @property
    def ever_non_finite(self) -> list[str]:
        """The matrices whose norm was inf or NaN at some step."""
        return [name for name, count in zip(self.names, self._non_finite.tolist()) if count]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "norms": self.values,
            "recorded_steps": self.steps,
            "non_finite_steps": self.left_out,
            "non_finite_norms": dict(zip(self.names, self._non_finite.tolist())),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; by name, because JSON may have sorted the names."""
        self.steps = state["recorded_steps"]
        self._values.copy_(torch.tensor([state["norms"][name] for name in self.names]))
        self._left_out.fill_(state["non_finite_steps"])
        self._non_finite.copy_(torch.tensor([state["non_finite_norms"][name] for name in self.names]))
