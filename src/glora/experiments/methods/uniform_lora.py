"""LoRA with the same rank in every matrix, the methods that differ from it by one argument of PEFT, and full fine-tuning.

Each starts at the function of the pretrained model. What a method changes beside its one argument is in its docstring.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainingArguments

from glora.experiments.methods.adapted_model import AdaptedModel
from glora.experiments.methods.base import MethodContext
from glora.experiments.methods.limits import uniform_total
from glora.lora.peft_config import exact_pattern

PISSA = "pissa_niter_16"
"""The authors' fast SVD with the most iterations of their comparison (arXiv:2404.02948), whose error there is close to that
of the full SVD; that one takes minutes for each large matrix, and the residual is computed from the factors that were found."""

LORA_PLUS_RATIO = 16.0
"""λ, the learning rate of B over that of A: the authors' recommendation, 2⁴ (arXiv:2402.12354)."""


def uniform_lora(to: MethodContext, rank: int | None = None, **more: Any) -> Any:
    """Return the model with a LoRA adapter of one rank, by default the run's, and the run's scaling.

    Args:
        to: The model and the run's settings.
        rank: r.
        **more: Other fields of PEFT's `LoraConfig`.
    """
    rank = to.config.rank if rank is None else rank
    config = LoraConfig(r=rank, lora_alpha=to.scaling * rank, **to.lora_settings(), **more)
    return get_peft_model(to.model, config)


def apply_lora(to: MethodContext) -> AdaptedModel:
    """Δ = s·B·A with s = alpha / rank; with a total_rank or an average_rank, the ranks are as even as it allows.

    Raises:
        ValueError: total_rank is less than one for each matrix, or experts are adapted, which share their rank.
    """
    total_rank = uniform_total(to.config, to.matrices)
    if total_rank is None:
        return AdaptedModel(uniform_lora(to))
    if to.target_parameters:
        raise ValueError(
            f"lora:total_rank={total_rank} cannot adapt stacked experts, such as {to.target_parameters[0]}; leave "
            "total_rank out"
        )
    ranks = {exact_pattern(name): rank for name, rank in even_ranks(to.target_modules, total_rank).items()}
    alphas = {pattern: to.scaling * rank for pattern, rank in ranks.items()}
    return AdaptedModel(uniform_lora(to, rank_pattern=ranks, alpha_pattern=alphas))


def even_ranks(names: Sequence[str], total: int) -> dict[str, int]:
    """Ranks that sum to `total`, none more than one above another; the higher ones are spread evenly over the model.

    Of n matrices the i-th gets ⌊(i + 1)·total / n⌋ − ⌊i·total / n⌋.

    Raises:
        ValueError: there is not one for each matrix.
    """
    if total < len(names):
        raise ValueError(
            f"lora:total_rank={total} is below 1 for each of the {len(names)} matrices; give {len(names)} or more"
        )
    return {name: (i + 1) * total // len(names) - i * total // len(names) for i, name in enumerate(names)}


def apply_rslora(to: MethodContext) -> AdaptedModel:
    """Δ = (alpha / √rank)·B·A, arXiv:2312.03732: its scaling is √rank times LoRA's s, which is the method."""
    return AdaptedModel(uniform_lora(to, use_rslora=True))


def apply_dora(to: MethodContext) -> AdaptedModel:
    """W' = m·(W + s·B·A) / ‖W + s·B·A‖, row by row, with m of d_out entries trained; arXiv:2402.09353."""
    return DoraModel(uniform_lora(to, use_dora=True))


def apply_pissa(to: MethodContext) -> AdaptedModel:
    """A and B start as the largest r singular values and vectors of W, and W as what is left of it; arXiv:2404.02948.

    An adapter saved from this model belongs to the changed W; PEFT's `path_initial_model_for_weight_conversion` turns it
    into one for the pretrained model.
    """
    begun = time.perf_counter()
    to.preparing("singular vectors of the weights")
    adapted = AdaptedModel(uniform_lora(to, init_lora_weights=PISSA))
    adapted.preparation_seconds = time.perf_counter() - begun
    return adapted


def apply_lora_plus(to: MethodContext) -> AdaptedModel:
    """LoRA, where B learns at `LORA_PLUS_RATIO` times the rate of A; arXiv:2402.12354."""
    return LoraPlus(uniform_lora(to))


def train_all_weights(to: MethodContext) -> AdaptedModel:
    """Train all weights: no matrix is adapted, so there are no ranks, no shapes and no adapter parameters.

    A model that was loaded in bfloat16 is trained in float32 under autocast, as adapters are: at a learning rate of 2e-5 most
    steps are smaller than the smallest change of a bfloat16 weight.
    """
    return AdaptedModel(to.model.float().requires_grad_(True))


class DoraModel(AdaptedModel):
    """A model under DoRA."""

    def adapter_parameters(self) -> int:
        """Σ r_k·(d_out + d_in) + d_out: the magnitude is trained as well."""
        magnitudes = sum(self.module_shapes[name][0] for name, rank in self.ranks().items() if rank)
        return super().adapter_parameters() + magnitudes


class LoraPlus(AdaptedModel):
    """A model whose A and B have learning rates of their own. PEFT gives B's to the biases of the head as well."""

    def make_optimizer(self, arguments: TrainingArguments) -> torch.optim.Optimizer:
        """Trainer's own optimizer with PEFT's groups for LoRA+."""
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
            self.model,
            kind,
            loraplus_lr_ratio=LORA_PLUS_RATIO,
            loraplus_weight_decay=arguments.weight_decay,
            **settings,
        )
        return optimizer
