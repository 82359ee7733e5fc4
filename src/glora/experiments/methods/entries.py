"""An entry for each method: how it is named, what it reads, and where its implementation is. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping

from glora.config import Rule
from glora.experiments.config import ALLOCATION_SETTINGS
from glora.experiments.methods.base import BOTH, Method
from glora.experiments.methods.limits import (
    unsupported_bounds,
    unsupported_budget,
    unsupported_length,
    unsupported_total,
    unsupported_warmup,
)

_UNIFORM = "glora.experiments.methods.uniform_lora:"
_DATA = "glora.experiments.methods.data_initialisation:"

RULES: Mapping[Rule, tuple[str, str]] = {
    "gradient_norm": ("gradient norm", "After a warm-up, each matrix gets a rank in proportion to its gradient norm."),
    "spectrum": (
        "spectrum",
        "Starts wide; one cut keeps the directions of all matrices that hold most of what was learned.",
    ),
    "uniform": ("uniform cut", "Control: starts wide; one cut leaves every matrix the same rank."),
}
"""Rule -> its title, and what it does, for reports."""

ENTRIES = (
    Method(
        "lora",
        "LoRA",
        "The same rank in every matrix (Hu et al. 2021).",
        meets=BOTH,
        implementation=_UNIFORM + "apply_lora",
        adapts_experts=True,
        variant_settings=frozenset({"total_rank", "average_rank"}),
        check_matrices=unsupported_total,
    ),
    Method(
        "rslora",
        "rsLoRA",
        "LoRA scaled by alpha / √rank in the place of alpha / rank (Kalajdzievski 2023).",
        meets=BOTH,
        implementation=_UNIFORM + "apply_rslora",
        adapts_experts=True,
        aliases=("rank-stabilized LoRA", "rank-stabilised LoRA"),
    ),
    Method(
        "dora",
        "DoRA",
        "LoRA of a weight's direction, and its magnitude: d_out parameters more a matrix (Liu et al. 2024).",
        meets=("rank",),
        implementation=_UNIFORM + "apply_dora",
        aliases=("weight-decomposed LoRA", "weight-decomposed low-rank adaptation"),
    ),
    Method(
        "pissa",
        "PiSSA",
        "LoRA that starts from the largest singular values of each weight, taken out of it (Meng et al. 2024).",
        meets=BOTH,
        implementation=_UNIFORM + "apply_pissa",
        aliases=("principal singular values and singular vectors adaptation",),
    ),
    Method(
        "lora_plus",
        "LoRA+",
        "LoRA whose B learns at 16 times the learning rate of A (Hayou et al. 2024).",
        meets=BOTH,
        implementation=_UNIFORM + "apply_lora_plus",
        adapts_experts=True,
        aliases=("LoRA+",),
    ),
    Method(
        "eva",
        "EVA",
        "Ranks and lora_A from the variance of the activations before training (Paischer et al. 2024).",
        meets=("rank",),
        implementation=_DATA + "apply_eva",
        aliases=("explained variance adaptation",),
    ),
    Method(
        "lora_ga",
        "LoRA-GA",
        "LoRA that starts along the singular vectors of the first gradients (Wang et al. 2024).",
        meets=BOTH,
        implementation=_DATA + "apply_lora_ga",
        aliases=("LoRA with gradient approximation",),
    ),
    Method(
        "adalora",
        "AdaLoRA",
        "Prunes directions by importance while training, from 1.5 times the budget (Zhang et al. 2023).",
        meets=("rank",),
        implementation="glora.experiments.methods.adalora:apply_adalora",
        aliases=("adaptive LoRA",),
        settings=frozenset({"total_rank"}),
        usual_rates=(5e-4, 2.2e-3),  # the authors' GLUE scripts
        check_schedule=unsupported_length,
    ),
    *(
        Method(
            name,
            title,
            summary,
            meets=BOTH,
            implementation=f"glora.experiments.methods.glora:apply_{name}",
            adapts_experts=True,
            settings=ALLOCATION_SETTINGS,
            check_settings=unsupported_bounds,
            check_matrices=unsupported_budget,
            check_schedule=unsupported_warmup,
        )
        for name, title, summary in (
            (
                "glora",
                "GLoRA",
                "Gives each matrix its rank after the warm-up: by gradient norm, or rule=spectrum by what was learned.",
            ),
            (
                "shuffled",
                "shuffled GLoRA",
                "Control: GLoRA's ranks, dealt out at random among matrices of the same shape.",
            ),
        )
    ),
    Method(
        "full",
        "full fine-tuning",
        "Every weight is trained, without adapters; its learning rate, where none is given, is 2e-5.",
        meets=(),
        implementation=_UNIFORM + "train_all_weights",
        adapts_experts=True,
        aliases=("full fine-tuning", "full finetuning", "fine-tuning", "FT", "full-parameter fine-tuning"),
        default_overrides={"learning_rate": 2e-5},  # a tenth of LoRA's
        usual_rates=(2e-5, 5e-5),  # BERT, arXiv:1810.04805, appendix A.3
    ),
)
