"""AdaLoRA as its authors run it: PEFT's implementation, stepped at the right moment, with a schedule for any length.

Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv:2303.10512. The update
Δ = s·P·Λ·Q starts with a larger budget than it ends with. A warm-up leaves the budget alone; then it falls along a
cubic to the target, the least important directions being masked (their entry of Λ set to zero, again and again); in the
last phase the masks are fixed. PEFT adds the penalty that keeps P and Q orthogonal to the loss inside the model's
forward, and leaves it to the user to call `update_and_allocate` between the optimizer's step and zero_grad.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from peft import AdaLoraConfig, get_peft_model
from transformers import TrainerCallback

from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import MethodContext
from glora.experiments.methods.limits import AdaLoraSchedule

INITIAL_BUDGET = 1.5
"""Initial budget over final budget (section 4.1 of the paper)."""

ORTHOGONALITY_WEIGHT = 0.1
"""Weight of the orthogonality penalty in the authors' GLUE scripts (RTE alone uses 0.3; PEFT's default is 0.5)."""

# What is not the authors': the scaling s and the learning rate, which all methods of a comparison share. Their scripts have
# lora_alpha 16 or 32 at any rank, that is s = alpha / init_r from 5.3 to 16 at their init_r of 2 and 3, and 1.3 or 2.7 at
# the init_r = 12 of a comparison at rank 8, on both sides of the s = 2 that is LoRA's by default. Their learning rates are
# 5e-4 to 2.2e-3, over 5 to 50 epochs. AdaLoRA needs them: Λ starts at zero between P and Q of standard deviation 0.02, so
# that Adam's first step moves ‖Δ‖ by s·η·√init_r·0.02²·√(d_out·d_in), where LoRA's moves it by s·η·√(r·d_out/3): 40 times as
# far for 768 × 768 at rank 8. At LoRA's 2e-4 it has hardly begun after a few hundred steps.


class AdaLoraStepper(TrainerCallback):
    """Lets AdaLoRA measure importance and mask, after each step of the optimizer and before zero_grad.

    `on_optimizer_step` is the only event between the two; at `on_step_end` the gradients are gone. The step is counted
    from 0, as in the authors' code and in PEFT's example.
    """

    def __init__(self, adalora_model: Any) -> None:
        self._adalora_model = adalora_model

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hand PEFT the step that the optimizer has just made."""
        self._adalora_model.update_and_allocate(state.global_step)


class AdaLora(AdaptedModel):
    """A model under AdaLoRA. Masked directions stay in memory: only the ranks tell how many are left."""

    def __init__(self, model: Any, schedule: AdaLoraSchedule) -> None:
        super().__init__(model, [AdaLoraStepper(model.base_model)])
        self.schedule = schedule
        self._config = model.peft_config[model.active_adapter]

    @property
    def _masks(self) -> dict[str, list[bool]] | None:
        return self._config.rank_pattern

    def ranks(self) -> dict[str, int]:
        """Module name -> directions that are not masked."""
        if self._masks is None:
            return dict(self.initial_ranks)
        return {name.split(".lora_E")[0]: int(sum(mask)) for name, mask in self._masks.items()}

    def adapter_parameters(self) -> int:
        """Σ r_k · (d_out + d_in + 1): a direction also has its entry of Λ; masked directions count as gone."""
        return super().adapter_parameters() + sum(self.ranks().values())

    @property
    def reallocated_at(self) -> int | None:
        """Optimizer steps made when the masks became final."""
        final = self.schedule.total_step - self.schedule.tfinal + 1
        return final if self._masks is not None else None


def apply_adalora(to: MethodContext) -> AdaLora:
    """Put AdaLoRA on a model, with R_total directions left at the end and LoRA's scaling s.

    PEFT scales the update by lora_alpha / init_r and keeps that when directions are masked, so lora_alpha = s · init_r
    makes the scaling the s that LoRA has.
    """
    total_rank, matrices = to.total_rank, len(to.target_modules)
    # Rounded up, so that there is always something to prune: PEFT fails where init_r == target_r.
    init_r = math.ceil(INITIAL_BUDGET * total_rank / matrices)
    schedule = AdaLoraSchedule.of(to.schedule.total_steps)
    config = AdaLoraConfig(
        **to.lora_settings(),
        init_r=init_r,
        target_r=max(1, total_rank // matrices),
        lora_alpha=to.scaling * init_r,
        orth_reg_weight=ORTHOGONALITY_WEIGHT,
        **asdict(schedule),
    )
    adapted = get_peft_model(to.model, config)
    # target_r is an integer per matrix; the budget that PEFT allocates is this sum, which need not be a multiple.
    adapted.base_model.rankallocator.target_bgt = total_rank
    return AdaLora(adapted, schedule)
