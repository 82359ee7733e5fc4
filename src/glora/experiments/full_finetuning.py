"""Full fine-tuning: every weight of the model is trained, and there is no adapter.

The yardstick of what adapters give up, and save. It has no ranks, and needs a learning rate about ten times smaller than
LoRA's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glora.experiments.adaptation import Adaptation

if TYPE_CHECKING:
    from glora.experiments.methods import Application


def apply_full(to: Application) -> Adaptation:
    """Train all weights: no matrix is adapted, so there are no ranks, no shapes and no parameters of adapters."""
    return Adaptation(to.model.requires_grad_(True))
