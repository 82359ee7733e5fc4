"""Full fine-tuning: every weight is trained and there is no adapter. The yardstick of what adapters give up, and save."""

from __future__ import annotations

from glora.experiments.methods.base import Method

METHODS = (
    Method(
        "full",
        "Every weight is trained, without adapters; its learning rate, where none is given, is 2e-5.",
        meets=(),
        implementation="glora.experiments.methods.applied.uniform_lora:train_all_weights",
        adapts_experts=True,
        aliases=("full fine-tuning", "full finetuning", "fine-tuning", "FT", "full-parameter fine-tuning"),
        default_overrides={"learning_rate": 2e-5},  # a tenth of LoRA's
        usual_rates=(2e-5, 5e-5),  # BERT, arXiv:1810.04805, appendix A.3
    ),
)
