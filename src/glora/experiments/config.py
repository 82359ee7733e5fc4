"""What one training run is: every setting that can change its result, and nothing else.

A `RunConfig` is validated whole before anything is loaded, is stored in the run's record, and its `key` names the
record's file, so that a run which is finished is recognised and not run again.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_TASK = "stdlib-docs"
DEFAULT_METHODS = ("lora", "adalora", "glora")
DEFAULT_SEEDS = (0, 1, 2)
GENERATIVE_MAX_LENGTH = 1024
"""Default of `max_length` where answers are written. Nothing is padded to it, so it costs only those that are so long."""
DEFAULT_MAX_NEW_TOKENS = 512


class RunConfig(BaseModel):
    """One run: a model, a task, a method and a seed, with the schedule they share.

    The defaults are those of the study that GLoRA was proposed for: rank 8, AdamW with learning rate 2e-4, batches of
    32, three epochs, one epoch of warm-up, beta 0.9.
    """

    # defaults are validated as given values are, so that 3 and 3.0 epochs are one configuration with one key
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    model: str = Field(DEFAULT_MODEL, description="Model: a name of `glora list models`, a hub id or a local folder.")
    task: str = Field(DEFAULT_TASK, description="Task: a name of `glora list tasks`, or a data file of one's own.")
    method: str = Field("glora", description="Method: a name of `glora list methods`.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seeds the head's initialisation, the adapters and the data order."
    )

    rank: int = Field(8, ge=1, description="Rank r of uniform LoRA; every method's budget follows from it.")
    lora_alpha: float | None = Field(
        None,
        gt=0,
        description="LoRA's alpha; the scaling s = alpha / rank is the same for every method. Default 2 * rank.",
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    target_modules: tuple[str, ...] | None = Field(
        None,
        description="Names or suffixes of the adapted matrices. Default: every linear layer of the encoder or decoder.",
    )

    learning_rate: float = Field(2e-4, gt=0, description="AdamW's peak learning rate.")
    batch_size: int = Field(32, ge=1, description="Examples per optimiser step.")
    epochs: float = Field(3, gt=0, description="Passes over the training data.")
    lr_scheduler: str = Field("linear", description="Learning-rate schedule, as transformers names it.")
    lr_warmup: float = Field(0.06, ge=0, lt=1, description="Share of all steps over which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_length: int = Field(
        128,
        ge=8,
        description="Tokens per example; longer ones are truncated. Where answers are written, 1024 by default.",
    )
    group_by_length: bool | None = Field(
        None,
        description="Whether a batch has examples of about one length, so that less is padding. Default: batches are drawn "
        "at random.",
    )
    train_limit: int | None = Field(
        None, ge=1, description="Use at most this many training examples, the same ones for every seed."
    )
    eval_limit: int | None = Field(None, ge=1, description="Evaluate on at most this many examples.")
    held_out: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="For tuning: evaluate on this share of the training examples, left out of training, and not on the "
        "task's evaluation splits, which are not read.",
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Where answers are written: a model stops after so many tokens. Default: 512."
    )
    temperature: float | None = Field(
        None, gt=0, description="Where answers are written: they are drawn at this temperature. Default: greedily."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16 trains under autocast; a causal model's own weights, which are frozen, are then loaded in it.",
    )

    total_rank: int | None = Field(
        None, ge=1, description="R_total, the rank budget of AdaLoRA and GLoRA. Default: matrices * rank."
    )
    warmup_steps: float | None = Field(
        None, gt=0, description="Steps with uniform ranks; below 1 a share of all steps. Default: one epoch."
    )
    beta: float = Field(0.9, ge=0, lt=1, description="Decay of the moving average of the gradient norms.")
    signal: Literal["delta", "delta_exact", "lora_b"] = Field("delta", description="Which norm is averaged.")
    budget: Literal["rank", "parameters"] = Field("rank", description="What GLoRA holds equal to uniform LoRA's.")
    min_rank: int = Field(0, ge=0, description="No matrix gets a smaller rank.")
    max_rank: int | None = Field(None, ge=1, description="No matrix gets a larger rank.")
    keep: Literal["norm", "svd", "first"] = Field("norm", description="Which columns a shrinking matrix keeps.")
    # None is RankAllocationConfig's default, and leaves the keys of runs from before these settings as they were
    score: Literal["last_singular_value"] | None = Field(
        None,
        description="What ranks are shared out by. Default: the averaged gradient norm; else the last singular value of the "
        "update learned in the warm-up.",
    )
    score_exponent: float | None = Field(
        None, ge=0, description="p in s_k = g_k^p: above 1 ranks differ more, below 1 less. Default: 1."
    )
    relative_to: Literal["weight", "size"] | None = Field(
        None,
        description="Norms are divided by the norm of the frozen weight, or by √(d_in·d_out). Default: by nothing.",
    )
    rank_scaling: Literal["inverse_sqrt", "inverse"] | None = Field(
        None, description="How a matrix's scaling falls as its rank grows, 1/√r or 1/r. Default: it is held."
    )
    reallocate_every: int | None = Field(
        None, ge=1, description="Steps from one reallocation to the next. Default: there is one, after the warm-up."
    )
    max_reallocations: int | None = Field(
        None, ge=1, description="No more reallocations than this; goes with reallocate_every. Default: no limit."
    )

    report_to: str | None = Field(
        None,
        # Who watches a run changes nothing of it.
        exclude=True,
        description="Where the runs can be watched: names of Trainer's report_to, with commas, such as tensorboard or wandb; "
        "neither recorded nor part of the key.",
    )
    data_dir: str | None = Field(
        None,
        # Where the data lie on this machine; what they are stands in the record as their fingerprint.
        exclude=True,
        description="Folder with the task's own files; neither recorded nor part of the key.",
    )

    @field_validator("warmup_steps")
    @classmethod
    def _whole_steps(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and not value.is_integer():
            raise PydanticCustomError(
                "steps", "a number of steps is a whole number; below 1 it is a share of all steps, such as 0.3"
            )
        return value

    @property
    def alpha(self) -> float:
        """LoRA's alpha, the default filled in: 2 * rank."""
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.rank

    @property
    def key(self) -> str:
        """`task--model--method--r8--seed0--1a2b3c4d`: readable, and unique to this configuration.

        Settings that are None are left out of the digest, so that a setting that is added later, and is None by default,
        gives no finished run another name.
        """
        digest = hashlib.sha256(self.model_dump_json(exclude_none=True).encode()).hexdigest()[:8]
        parts = (self.task, self.model, self.method, f"r{self.rank}", f"seed{self.seed}")
        slug = "--".join("".join(c if c.isalnum() or c in ".-" else "-" for c in p.rsplit("/", 1)[-1]) for p in parts)
        return f"{slug}--{digest}"
