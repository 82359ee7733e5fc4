"""The methods that can be compared: a registry with one short entry each, and PEFT's implementation behind every one.

All methods of one seed start from the same head and the same function, see the same batches in the same order, and share
optimiser, schedule and the scaling s = alpha / rank, but for what is the method itself: rsLoRA's scaling is alpha / √rank,
LoRA+ has two learning rates, PiSSA, EVA, LoRA-GA and AdaLoRA have factors of their own. Each is given the budget of uniform
LoRA, R_total = matrices · rank, as far as it can meet it.

Listing the methods must be quick, so what applies them, and with it PEFT, is imported when it is needed.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glora.experiments.config import ALLOCATION_SETTINGS, SETTINGS
from glora.experiments.methods.unsupported_settings import adalora_faults, allocation_faults, warmup_faults
from glora.experiments.methods.variants import split_variant, variant_of

if TYPE_CHECKING:
    import torch

    from glora.experiments.config import RunConfig
    from glora.experiments.methods.adapted_model import AdaptedModel


@dataclass(frozen=True)
class Schedule:
    """How long a run is, in optimiser steps."""

    total_steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, examples: int, batch_size: int, epochs: float) -> Schedule:
        """As `transformers.Trainer` counts: the last batch of an epoch may be short."""
        steps_per_epoch = math.ceil(examples / batch_size)
        return cls(total_steps=math.ceil(epochs * steps_per_epoch), steps_per_epoch=steps_per_epoch)

    def warmup_steps(self, setting: float | None) -> int:
        """`warmup_steps` of the configuration in steps: None is one epoch, below 1 a share of all steps, else steps."""
        if setting is None:
            return self.steps_per_epoch
        return int(setting) if setting >= 1 else math.ceil(setting * self.total_steps)


def _ignore_progress(what: str, how_far: str = "") -> None:
    """Where nobody looks on."""


@dataclass(frozen=True)
class MethodContext:
    """What a method is applied to."""

    model: Any
    config: RunConfig
    schedule: Schedule
    target_modules: Sequence[str]
    """Full names of the adapted matrices, relative to the model."""
    head_modules: Sequence[str]
    """Modules that are trained whole, beside the adapters."""
    batches: Callable[[], Iterator[dict[str, torch.Tensor]]]
    """Training batches without end, the same ones at each call; for a method that looks at some before training."""
    task_type: str = "SEQ_CLS"
    """PEFT's name for the kind of task."""
    target_parameters: Sequence[str] = ()
    """Full names of adapted parameters that are stacks of experts, each with one rank for all of its experts."""
    preparing: Callable[..., None] = _ignore_progress
    """To be told, as `RunProgress.preparing` is, of what takes its time before the first step."""

    @property
    def total_rank(self) -> int:
        """R_total; by default what uniform LoRA spends."""
        return (
            self.config.allocation.total_rank
            or (len(self.target_modules) + len(self.target_parameters)) * self.config.rank
        )

    @property
    def scaling(self) -> float:
        """The scaling of the update, s = alpha / rank."""
        return self.config.alpha / self.config.rank

    def lora_settings(self) -> dict[str, Any]:
        """The keyword arguments that `LoraConfig` and its relatives share."""
        return {
            "task_type": self.task_type,
            "target_modules": list(self.target_modules),
            **({"target_parameters": list(self.target_parameters)} if self.target_parameters else {}),
            "modules_to_save": list(self.head_modules) or None,
            "lora_dropout": self.config.lora_dropout,
        }


@dataclass(frozen=True)
class Method:
    """One way to fine-tune with low-rank updates.

    Attributes:
        name: as on the command line.
        summary: one line for `glora list methods`.
        meets: the budgets that it can hold equal to uniform LoRA's, "rank", "parameters" or both.
        apply: puts it on a model.
        aliases: what else it is called in papers and experiment files.
        settings: those of ALLOCATION_SETTINGS that it looks at; the others are left at their defaults in its runs, so
            that changing beta does not make LoRA's runs new ones.
        variant_settings: those of ALLOCATION_SETTINGS that it looks at only where its name gives them (`lora:total_rank=96`).
        fixed: the settings that the name of a variant gives.
        own_defaults: settings whose default, where none is given, is another one for this method.
        adapts_experts: whether it can adapt stacks of experts (PEFT's `target_parameters`).
        usual_rates: lowest and highest peak learning rate that its authors used, where they are not LoRA's.
        setting_faults: what it refuses in a configuration, as sentences; none when all is well.
        schedule_faults: what makes it impossible with a training of this length.
    """

    name: str
    summary: str
    meets: tuple[str, ...]
    apply: Callable[[MethodContext], AdaptedModel]
    aliases: tuple[str, ...] = ()
    settings: frozenset[str] = frozenset()
    variant_settings: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    own_defaults: Mapping[str, Any] = field(default_factory=dict)
    adapts_experts: bool = False
    usual_rates: tuple[float, float] | None = None
    setting_faults: Callable[[RunConfig], list[str]] = lambda _config: []
    schedule_faults: Callable[[RunConfig, Schedule], list[str]] = lambda _config, _schedule: []

    def apply_to(self, to: MethodContext) -> AdaptedModel:
        """Apply it.

        Raises:
            ValueError: it cannot adapt what is to be adapted.
        """
        if to.target_parameters and not self.adapts_experts:
            raise ValueError(
                f"{self.name} cannot adapt stacked experts, such as {to.target_parameters[0]}; leave the method out, or name "
                "the matrices with target_modules and leave the experts out"
            )
        return self.apply(to)

    def normalise(self, config: RunConfig, seed: int) -> RunConfig:
        """The configuration of one of this method's runs.

        Settings that it does not look at are at their defaults, and so are those of `own_defaults` that were not given. What
        a variant's name says holds whatever was given.
        """
        ignored = {name: SETTINGS[name].default for name in ALLOCATION_SETTINGS - self.settings}
        own = {name: value for name, value in self.own_defaults.items() if name not in config.model_fields_set}
        return config.with_settings({**ignored, **own, **self.fixed, "method": self.name, "seed": seed})


def find_method(name: str) -> Method:
    """The method of this name, or the variant: `glora:budget=parameters` is `glora` with that setting.

    Raises:
        ValueError: there is none, naming the nearest; or see `variant_of`.
    """
    base, settings = split_variant(name)
    if settings and base in METHODS:
        return variant_of(METHODS[base], settings)
    if name in METHODS:
        return METHODS[name]
    name = base
    near = difflib.get_close_matches(name.lower(), METHODS, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown method {name!r}: {hint}The methods are {', '.join(METHODS)}")


def _in(module: str, function: str) -> Callable[[MethodContext], AdaptedModel]:
    """A function of a module of this package that is imported when it is called."""

    def apply(to: MethodContext) -> AdaptedModel:
        adaptation: AdaptedModel = getattr(importlib.import_module(f"glora.experiments.methods.{module}"), function)(to)
        return adaptation

    return apply


BOTH = ("rank", "parameters")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "lora",
            "The same rank in every matrix (Hu et al. 2021).",
            meets=BOTH,
            adapts_experts=True,
            variant_settings=frozenset({"total_rank"}),
            apply=_in("uniform_lora", "apply_lora"),
        ),
        Method(
            "rslora",
            "LoRA scaled by alpha / √rank in the place of alpha / rank (Kalajdzievski 2023).",
            meets=BOTH,
            adapts_experts=True,
            apply=_in("uniform_lora", "apply_rslora"),
            aliases=("rank-stabilized LoRA", "rank-stabilised LoRA"),
        ),
        Method(
            "dora",
            "LoRA of a weight's direction, and its magnitude: d_out parameters more a matrix (Liu et al. 2024).",
            meets=("rank",),
            apply=_in("uniform_lora", "apply_dora"),
            aliases=("weight-decomposed LoRA", "weight-decomposed low-rank adaptation"),
        ),
        Method(
            "pissa",
            "LoRA that starts from the largest singular values of each weight, taken out of it (Meng et al. 2024).",
            meets=BOTH,
            apply=_in("uniform_lora", "apply_pissa"),
            aliases=("principal singular values and singular vectors adaptation",),
        ),
        Method(
            "eva",
            "Ranks and lora_A from the variance of the activations before training (Paischer et al. 2024).",
            meets=("rank",),
            apply=_in("data_initialisation", "apply_eva"),
            aliases=("explained variance adaptation",),
        ),
        Method(
            "lora_ga",
            "LoRA that starts along the singular vectors of the first gradients (Wang et al. 2024).",
            meets=BOTH,
            apply=_in("data_initialisation", "apply_lora_ga"),
            aliases=("LoRA with gradient approximation",),
        ),
        Method(
            "lora_plus",
            "LoRA whose B learns at 16 times the rate of A (Hayou et al. 2024).",
            meets=BOTH,
            adapts_experts=True,
            apply=_in("uniform_lora", "apply_lora_plus"),
            aliases=("LoRA+",),
        ),
        Method(
            "adalora",
            "Prunes directions by importance while training, from 1.5 times the budget (Zhang et al. 2023).",
            meets=("rank",),
            apply=_in("adalora", "apply_adalora"),
            aliases=("adaptive LoRA",),
            settings=frozenset({"total_rank"}),
            usual_rates=(5e-4, 2.2e-3),  # the GLUE scripts, see adalora.py
            schedule_faults=adalora_faults,
        ),
        Method(
            "glora",
            "Shares the ranks out once, after the warm-up, by the averaged norm of each matrix's gradient.",
            meets=BOTH,
            adapts_experts=True,
            apply=_in("glora", "apply_glora"),
            settings=ALLOCATION_SETTINGS,
            setting_faults=allocation_faults,
            schedule_faults=warmup_faults,
        ),
        Method(
            "shuffled",
            "Control: GLoRA's ranks, dealt out at random among matrices of the same shape.",
            meets=BOTH,
            adapts_experts=True,
            apply=_in("glora", "apply_shuffled"),
            settings=ALLOCATION_SETTINGS,
            setting_faults=allocation_faults,
            schedule_faults=warmup_faults,
        ),
        Method(
            "full",
            "Every weight is trained, without adapters; its learning rate, where none is given, is 2e-5.",
            meets=(),
            adapts_experts=True,
            apply=_in("full_finetuning", "apply_full"),
            aliases=("full fine-tuning", "full finetuning", "fine-tuning", "FT", "full-parameter fine-tuning"),
            own_defaults={"learning_rate": 2e-5},  # a tenth of LoRA's
            usual_rates=(2e-5, 5e-5),  # BERT, arXiv:1810.04805, appendix A.3
        ),
    )
}
