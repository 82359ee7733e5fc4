"""The interface of a method: its entry in the registry, and what it is applied to.

All methods of one seed start from the same head and the same function, see the same batches in the same order, and share
optimizer, schedule and the scaling s = alpha / rank, except for what is the method itself: rsLoRA scales by alpha / √rank,
LoRA+ has two learning rates, PiSSA, EVA, LoRA-GA and AdaLoRA have their own factors. Each gets the budget of uniform LoRA,
R_total = matrices · rank, as far as it can meet it.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glora.config import READ_WITH, RankAllocationConfig, is_read
from glora.experiments.config import ALLOCATION_SETTINGS, SETTINGS, RunConfig

_READ_WITH = {**READ_WITH, "start_factor": READ_WITH["energy"]}
"""Settings that not every rule reads -> the setting, and its values, that read them."""

if TYPE_CHECKING:
    import torch

    from glora.experiments.methods.adapted_model import AdaptedModel


@dataclass(frozen=True)
class Schedule:
    """Length of a run, in optimizer steps."""

    total_steps: int
    steps_per_epoch: int

    @classmethod
    def of(cls, examples: int, batch_size: int, epochs: float) -> Schedule:
        """Count as `transformers.Trainer` does: the last batch of an epoch may be short."""
        steps_per_epoch = math.ceil(examples / batch_size)
        return cls(total_steps=math.ceil(epochs * steps_per_epoch), steps_per_epoch=steps_per_epoch)

    def warmup_steps(self, allocation: RankAllocationConfig) -> int:
        """Return the warm-up of an allocation in steps."""
        return allocation.warmup_of(self.total_steps, self.steps_per_epoch)


@dataclass(frozen=True)
class MethodContext:
    """Everything a method is applied to."""

    model: Any
    config: RunConfig
    schedule: Schedule
    target_modules: Sequence[str]
    """Full names of the adapted matrices, relative to the model."""
    head_modules: Sequence[str]
    """Modules that are trained whole, beside the adapters."""
    batches: Callable[[], Iterator[dict[str, torch.Tensor]]]
    """Training batches without end, the same ones at each call; for methods that look at data before training."""
    task_type: str = "SEQ_CLS"
    """PEFT's name for the kind of task."""
    target_parameters: Sequence[str] = ()
    """Full names of adapted parameters that are stacks of experts, each with one rank for all of its experts."""
    preparing: Callable[..., None] = lambda *_: None
    """Receives progress before the first step, as `RunProgress.preparing` does."""

    @property
    def total_rank(self) -> int:
        """R_total; by default that of uniform LoRA."""
        return self.config.allocation.total_rank or self.matrices * self.config.rank

    @property
    def matrices(self) -> int:
        """Number of adapted matrices; a stack of experts is one."""
        return len(self.target_modules) + len(self.target_parameters)

    @property
    def scaling(self) -> float:
        """The scaling of the update, s = alpha / rank."""
        return self.config.alpha / self.config.rank

    def lora_settings(self) -> dict[str, Any]:
        """Return the keyword arguments that `LoraConfig` and its relatives share."""
        return {
            "task_type": self.task_type,
            "target_modules": list(self.target_modules),
            **({"target_parameters": list(self.target_parameters)} if self.target_parameters else {}),
            "modules_to_save": list(self.head_modules) or None,
            "lora_dropout": self.config.lora_dropout,
        }


@dataclass(frozen=True)
class Method:
    """One way to fine-tune: an entry of the registry, which imports nothing heavy.

    Attributes:
        name: as on the command line.
        title: as in reports.
        summary: one line for `glora list methods`.
        meets: the budgets that it can hold equal to uniform LoRA's, "rank", "parameters" or both.
        implementation: function from a `MethodContext` to an `AdaptedModel`, or its place, "module:function". A place is
            imported when the method is applied, so that listing methods imports neither torch nor PEFT.
        aliases: other names in papers and experiment files.
        settings: the allocation settings that it reads; the others are at their defaults in its runs, so that changing
            beta does not make LoRA's runs new ones.
        variant_settings: allocation settings that it reads only from the name of a variant (`lora:average_rank=16`).
        fixed: the settings that the name of a variant gives.
        default_overrides: settings with another default for this method.
        adapts_experts: whether it can adapt stacks of experts (PEFT's `target_parameters`).
        usual_rates: lowest and highest peak learning rate that its authors used, where they are not LoRA's.
        check_settings: returns what it does not support in a configuration, as sentences.
        check_matrices: returns what it does not support for matrices with these largest ranks, as sentences.
        check_schedule: returns why it cannot train for this length, as sentences.
    """

    name: str
    title: str
    summary: str
    meets: tuple[str, ...]
    implementation: str | Callable[[MethodContext], AdaptedModel]
    aliases: tuple[str, ...] = ()
    settings: frozenset[str] = frozenset()
    variant_settings: frozenset[str] = frozenset()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    default_overrides: Mapping[str, Any] = field(default_factory=dict)
    adapts_experts: bool = False
    usual_rates: tuple[float, float] | None = None
    check_settings: Callable[[RunConfig], list[str]] = lambda _config: []
    check_matrices: Callable[[RunConfig, Mapping[str, int]], list[str]] = lambda _config, _limits: []
    check_schedule: Callable[[RunConfig, Schedule], list[str]] = lambda _config, _schedule: []

    def apply(self, to: MethodContext) -> AdaptedModel:
        """Apply the method to a model.

        Raises:
            ValueError: it cannot adapt these matrices.
        """
        if to.target_parameters and not self.adapts_experts:
            raise ValueError(
                f"{self.name} cannot adapt stacked experts, such as {to.target_parameters[0]}; leave the method out, or name "
                "the matrices with target_modules and leave the experts out"
            )
        implementation: Any = self.implementation
        adapted: AdaptedModel = (
            pkgutil.resolve_name(implementation) if isinstance(implementation, str) else implementation
        )(to)
        return adapted

    def reads(self, config: RunConfig) -> frozenset[str]:
        """Return the allocation settings that the method reads under a configuration's rule, or under its own."""
        allocation = config.with_settings(self.fixed).allocation
        return frozenset(name for name in self.settings if _is_read(name, allocation))

    def setting_errors(self, config: RunConfig) -> list[str]:
        """Return what the method does not support in a configuration, as sentences."""
        unread = [name for name in self.fixed if name in self.settings - self.reads(config)]
        return [
            *(f"{name} is read with {_condition(name)} only; leave it out, or give that as well" for name in unread),
            *self.check_settings(config.with_settings(self.fixed)),
        ]

    def matrix_errors(self, config: RunConfig, limits: Mapping[str, int]) -> list[str]:
        """Return what the method does not support for these matrices, as sentences.

        Args:
            config: the settings.
            limits: matrix -> min(d_in, d_out).
        """
        return self.check_matrices(self.normalise(config, config.seed), limits)

    def schedule_errors(self, config: RunConfig, schedule: Schedule) -> list[str]:
        """Return why the method cannot train for this length, as sentences."""
        return self.check_schedule(config.with_settings(self.fixed), schedule)

    def normalise(self, config: RunConfig, seed: int) -> RunConfig:
        """Return the configuration of one of this method's runs.

        Settings that the method, or its rule, does not read are at their defaults, and so are those of `default_overrides` that
        were not given. The settings in a variant's name win.
        """
        unread = {name: SETTINGS[name].default for name in ALLOCATION_SETTINGS - self.reads(config)}
        own = {name: value for name, value in self.default_overrides.items() if name not in config.model_fields_set}
        return config.with_settings({**unread, **own, **self.fixed, "method": self.name, "seed": seed})


def unread_settings(config: RunConfig, methods: Sequence[Method]) -> list[str]:
    """Return an error for each allocation setting that is not at its default and that none of the methods reads."""
    unread = ALLOCATION_SETTINGS - {name for method in methods for name in method.reads(config) - method.fixed.keys()}
    values = vars(config.allocation) | {"start_factor": config.start_factor}
    names = ", ".join(method.name for method in methods)
    return [
        f"{name}={values[name]} is read by glora{_condition(name, ' with ')}, not by {names}; leave it out"
        for name in SETTINGS
        if name in unread and values[name] != SETTINGS[name].default
    ]


def _is_read(name: str, allocation: RankAllocationConfig) -> bool:
    """Return whether the rule and the signal of an allocation read a setting."""
    return allocation.cuts if name == "start_factor" else is_read(allocation, name)


def _condition(name: str, before: str = "") -> str:
    """Return the values that read a setting, `rule=spectrum or rule=uniform`, after `before`; empty if all do."""
    setting, values = _READ_WITH.get(name, ("", ()))
    return before + " or ".join(f"{setting}={value}" for value in values) if values else ""


BOTH = ("rank", "parameters")
"""`Method.meets` of a method that can meet either budget."""
