"""Full fine-tuning: every weight of the model is trained, and there is no adapter.

The yardstick of what adapters give up, and save. It has no ranks, and needs a learning rate about ten times smaller than
LoRA's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glora.experiments.methods.adapted_model import AdaptedModel

if TYPE_CHECKING:
    from glora.experiments.methods.base import MethodContext


def apply_full(to: MethodContext) -> AdaptedModel:
    """Train all weights: no matrix is adapted, so there are no ranks, no shapes and no parameters of adapters.

    A model that was loaded in bfloat16 is trained in float32 under autocast, as adapters are: at a rate of 2e-5 most steps
    are smaller than what bfloat16 can add to a weight.
    """
    return AdaptedModel(to.model.float().requires_grad_(True))
