"""The settings of an allocation, validated as a whole before a model is touched."""

from __future__ import annotations

import dataclasses
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from glora.messages import did_you_mean

Rule = Literal["gradient_norm", "spectrum", "uniform"]
Signal = Literal["delta", "delta_exact", "lora_b"]
Budget = Literal["rank", "parameters"]
Keep = Literal["norm", "svd", "first"]
BUDGETS = ("total_rank", "average_rank", "energy")
"""Fields that say how much is wanted."""
CUT_WARMUP, ONE_EPOCH_WARMUP = 0.25, 0.1
"""Default warm-up as a share of all steps: of the rules that cut, and of a training without a second epoch."""


READ_WITH: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "beta": ("rule", ("gradient_norm",)),
    "signal": ("rule", ("gradient_norm",)),
    "exact_every": ("signal", ("delta_exact",)),
    "energy": ("rule", ("spectrum", "uniform")),
}
"""Fields that not every rule reads -> the field, and its values, that read them."""

MAX_ERRORS = 30
"""Errors of one configuration that its message names."""


class ConfigurationError(ValueError):
    """Everything that is wrong with a configuration, reported together.

    Attributes:
        errors: one sentence each.
    """

    def __init__(self, errors: Sequence[str], *, where: str = "") -> None:
        self.errors = tuple(dict.fromkeys(errors))
        one = len(self.errors) == 1
        more = [f"and {len(self.errors) - MAX_ERRORS:,} more"] if len(self.errors) > MAX_ERRORS else []
        lines = self.errors[0] if one else "".join(f"\n  - {error}" for error in [*self.errors[:MAX_ERRORS], *more])
        count = "" if one else f"{len(self.errors):,} things are wrong:"
        super().__init__(f"{where}: {count}{lines}" if where else f"{count}{lines}")


class SettingError(ValueError):
    """An error about settings, which a command can call by the names of its options.

    Args:
        text: The error, with `{name}` in place of each setting.
        values: Settings that are written with their values.

    Attributes:
        values: The same.
    """

    def __init__(self, text: str, **values: Any) -> None:
        self._text, self.values = text, values
        super().__init__(self.named(lambda name: f"{name}={values[name]!r}" if name in values else name))

    def named(self, name_of: Callable[[str], str]) -> str:
        """Return the text with another name, or name and value, for each setting."""
        names = {name for _, name, _, _ in string.Formatter().parse(self._text) if name}
        return self._text.format_map({name: name_of(name) for name in names})


@dataclass(frozen=True)
class RankAllocationConfig:
    """Settings by which a warm-up becomes ranks. The defaults are the method as proposed.

    Attributes:
        rule: Source of the ranks: "gradient_norm" shares them out in proportion to ‖∂L/∂Δ_k‖_F; "spectrum" keeps the directions
            of all Δ_k with the largest σ²/cost, for an adapter that starts wider than it ends; "uniform" cuts every matrix to
            one rank, as a control. The last two keep what was learned (keep="svd").
        total_rank: R_total, the sum of all ranks after reallocation. Default: the sum before, n·r for n matrices of
            rank r. Give at most one of total_rank, average_rank and energy.
        average_rank: r̄ = R_total/n, which may be a fraction: 0.5 leaves about every second matrix without an adapter.
        energy: Share of Σ σ² that a cut keeps, above 0 and at most 1, in place of a budget.
        warmup_steps: T_warmup, the optimizer steps before the first reallocation: an int is steps, a float below 1 a share of
            all steps, rounded up. Default: one epoch (of a training of one epoch, a tenth), with rule="spectrum" or "uniform" a
            quarter of all steps; your own training loop needs an int.
        beta: β in g_k ← β·g_k + (1-β)·‖G_k‖_F, from 0 (the last step only) to below 1.
        signal: Source of ‖G_k‖_F: "delta" measures ‖∂L/∂Δ_k‖_F by a random sketch at each of the last 3/(1-β) steps before a
            reallocation; "delta_exact" forms G_k at every exact_every-th step; "lora_b" is ‖∂L/∂B_k‖_F, for comparison.
        exact_every: Steps between two measurements of signal="delta_exact". At 1 every norm is exact.
        reallocate_every: Steps between two reallocations. By gradient norms each is from new norms, and the total never
            changes; by the other rules the total falls to R_total in max_reallocations equal ratios. A matrix that lost its
            adapter stays without. Default: one reallocation, after the warm-up.
        max_reallocations: Largest number of reallocations, together with reallocate_every. Default: no limit, where norms
            decide.
        budget: Quantity held equal: "rank", Σ r_k = R_total exactly (as proposed), or "parameters", Σ r_k·(d_in + d_out)
            at most the cost of R_total ranks spread evenly, and within one column of it. Default: "rank" with
            rule="gradient_norm", and "parameters" with the others, so that average_rank=8 is never larger than LoRA at r = 8.
        min_rank: Smallest rank of a matrix: an int, or one for each module name. At 0 a matrix can lose its adapter;
            layers with DoRA or lora_bias, and experts, keep at least rank 1.
        max_rank: Largest rank of a matrix: an int, or one for each module name. min(d_in, d_out) always bounds it.
        keep: Columns that a shrinking matrix keeps: "norm" (largest ‖A_i‖·‖B_i‖), "svd" (the best approximation of B·A)
            or "first". Default: "norm" with rule="gradient_norm", and "svd", the only one, with the others.
        adapter_name: The adapter whose ranks are allocated. Default: the active one.
        seed: Seed of the new rows of A, combined with the module's name: every process draws the same, and the global
            generators (dropout, data order) are not touched.

    Raises:
        ConfigurationError: any field is out of range; all errors are reported together.
    """

    rule: Rule = "gradient_norm"
    total_rank: int | None = None
    average_rank: float | None = None
    energy: float | None = None
    warmup_steps: int | float | None = None
    beta: float = 0.9
    signal: Signal = "delta"
    exact_every: int = 16
    reallocate_every: int | None = None
    max_reallocations: int | None = None
    budget: Budget | None = None
    min_rank: int | Mapping[str, int] = 0
    max_rank: int | Mapping[str, int] | None = None
    keep: Keep | None = None
    adapter_name: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain_number(getattr(self, field.name)))
        for name in ("average_rank", "energy", "beta"):  # 8 and 8.0 are one configuration
            if is_int(value := getattr(self, name), 0):
                object.__setattr__(self, name, float(value))
        share = isinstance(self.warmup_steps, float) and 0 < self.warmup_steps < 1
        rules = {  # field -> whether it is kept, and the rule
            "rule": (self.rule in get_args(Rule), one_of(Rule, self.rule)),
            "total_rank": (_is_int_or_none(self.total_rank), "an int ≥ 1"),
            "average_rank": (self.average_rank is None or is_number(self.average_rank, above=0), "a number above 0"),
            "energy": (
                self.energy is None or (is_number(self.energy, above=0) and self.energy <= 1),
                "a share above 0 and at most 1, such as 0.95",
            ),
            "warmup_steps": (
                share or _is_int_or_none(self.warmup_steps),
                "a number of steps (int ≥ 1), a share of all steps (float between 0 and 1) or None for one epoch",
            ),
            "beta": (is_number(self.beta, above=-1) and 0 <= self.beta < 1, "in [0, 1)"),
            "signal": (self.signal in get_args(Signal), one_of(Signal, self.signal)),
            "exact_every": (is_int(self.exact_every, 1), "an int ≥ 1"),
            "reallocate_every": (_is_int_or_none(self.reallocate_every), "an int ≥ 1, or None for one reallocation"),
            "max_reallocations": (
                self.max_reallocations is None
                or (is_int(self.max_reallocations, 1) and self.reallocate_every is not None),
                "an int ≥ 1 together with reallocate_every, or None",
            ),
            "budget": (self.budget is None or self.budget in get_args(Budget), one_of(Budget, self.budget)),
            "keep": (self.keep is None or self.keep in get_args(Keep), one_of(Keep, self.keep)),
            "min_rank": (_is_bound(self.min_rank), "an int ≥ 0, or one for each module name"),
            "max_rank": (
                self.max_rank is None or _is_bound(self.max_rank),
                "an int ≥ 0, or one for each module name",
            ),
            "adapter_name": (isinstance(self.adapter_name, str | None), "the name of an adapter, or None"),
            "seed": (is_int(self.seed, 0), "an int ≥ 0"),
        }
        errors = [f"{name}={getattr(self, name)!r} must be {rule}" for name, (kept, rule) in rules.items() if not kept]
        errors = errors or [error for error, found in self._contradictions().items() if found]
        if errors:
            raise ConfigurationError(errors, where="RankAllocationConfig")

    def _contradictions(self) -> dict[str, bool]:
        rule = f"rule={self.rule!r}"
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        return {
            f"{' and '.join(given)} are given; give one of them": len(given) > 1,
            f"energy={self.energy!r} needs rule='spectrum' or 'uniform'; {rule} needs a total_rank or an average_rank": (
                not self.cuts and self.energy is not None
            ),
            f"keep={self.keep!r} must be 'svd' with {rule}, which keeps leading directions; leave keep out": (
                self.cuts and self.keep not in (None, "svd")
            ),
            f"reallocate_every={self.reallocate_every} needs max_reallocations with {rule}, the number of cuts": (
                self.cuts and self.reallocate_every is not None and self.max_reallocations is None
            ),
            f"average_rank={self.average_rank!r} must be a whole number with {rule}, which has one rank for all": (
                self.rule == "uniform" and self.average_rank is not None and not float(self.average_rank).is_integer()
            ),
        }

    @property
    def cuts(self) -> bool:
        """True if the ranks come from what was learned, so that no gradient is read."""
        return self.rule != "gradient_norm"

    @property
    def columns_kept(self) -> Keep:
        """`keep`, its default filled in."""
        return self.keep or ("svd" if self.cuts else "norm")

    @property
    def budget_unit(self) -> Budget:
        """`budget`, its default filled in."""
        return self.budget or ("parameters" if self.cuts else "rank")

    def warmup_of(self, total_steps: int, epoch: int | None) -> int:
        """Return T_warmup in optimizer steps.

        Args:
            total_steps: Steps of the training.
            epoch: Steps of an epoch; None where the data set has no length.
        """
        asked = self.warmup_steps
        if asked is None and not self.cuts and epoch is not None and epoch < total_steps:
            return epoch
        if asked is None:
            asked = CUT_WARMUP if self.cuts else ONE_EPOCH_WARMUP
        return math.ceil(asked * total_steps) if isinstance(asked, float) else asked

    def last_cut(self, warmup_steps: int) -> int:
        """Return the step of the last cut, or of the first reallocation by gradient norm."""
        if not self.cuts or self.reallocate_every is None or self.max_reallocations is None:
            return warmup_steps
        return warmup_steps + (self.max_reallocations - 1) * self.reallocate_every

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, fit for JSON; `keep` and `budget` with their defaults filled in."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= {"keep": self.columns_kept, "budget": self.budget_unit}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}

    def differences(self, earlier: Mapping[str, Any]) -> str:
        """Describe the differences from the `to_dict()` of an earlier configuration; empty if there are none.

        A field that an earlier glora did not have counts as its default.
        """
        mine = self.to_dict()
        defaults = RankAllocationConfig().to_dict()
        earlier = {**earlier, **{name: value for name, value in defaults.items() if name not in earlier}}
        return "; ".join(f"{k} was {v!r}, is {mine.get(k)!r}" for k, v in earlier.items() if mine.get(k) != v)


def as_config(config: RankAllocationConfig | Mapping[str, Any] | None) -> RankAllocationConfig:
    """Return the configuration, made from its fields where it is a dictionary; None gives the defaults.

    Raises:
        TypeError: it is neither, or a field does not exist.
        ValueError: any field is out of range or not read by the rule, or a rule that cuts has no budget.
    """
    config = _made_from_fields(config)
    errors = []
    # here and not where it is made: methods of an experiment share settings that one of them reads
    for name in READ_WITH:
        value, default = getattr(config, name), RankAllocationConfig.__dataclass_fields__[name].default
        if value != default and not is_read(config, name):
            unread_with = "rule" if config.cuts else READ_WITH[name][0]
            now = f"{unread_with}={getattr(config, unread_with)!r}"
            errors.append(f"{name}={value!r} is not read with {now}; leave {name} out")
    if config.cuts and all(getattr(config, name) is None for name in BUDGETS):
        errors.append(
            f"rule={config.rule!r} cuts to a budget; give average_rank, such as average_rank=8, or total_rank or energy"
        )
    if errors:
        raise ConfigurationError(errors, where="RankAllocationConfig")
    return config


def is_read(config: RankAllocationConfig, name: str) -> bool:
    """Return whether the rule and the signal of a configuration read a field."""
    if name not in READ_WITH:
        return True
    field, values = READ_WITH[name]
    return getattr(config, field) in values and is_read(config, field)


def _made_from_fields(config: RankAllocationConfig | Mapping[str, Any] | None) -> RankAllocationConfig:
    if isinstance(config, RankAllocationConfig):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(
            f"config={config!r} must be a RankAllocationConfig, or a dictionary of its fields, such as "
            "RankAllocationConfig(warmup_steps=1000)"
        )
    fields = dict(config or {})
    known = [field.name for field in dataclasses.fields(RankAllocationConfig)]
    if odd := [name for name in fields if name not in known]:
        near = did_you_mean(str(odd[0]), known) or f"; it has {', '.join(known)}"
        raise TypeError(f"RankAllocationConfig has no field {odd[0]!r}{near}")
    return RankAllocationConfig(**fields)


def plain_number(value: Any) -> Any:
    """Return NumPy's numbers as Python's, which JSON has."""
    if isinstance(value, Mapping):
        return {name: plain_number(one) for name, one in value.items()}
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def is_int(value: object, least: int) -> bool:
    """Return whether a setting is an int of at least so much; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object, above: float) -> bool:
    """Return whether a setting is a finite number above another; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value < math.inf


def _is_int_or_none(value: object) -> bool:
    return value is None or is_int(value, 1)


def _is_bound(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and is_int(bound, 0) for name, bound in value.items())
    return is_int(value, 0)


def one_of(values: Any, given: object) -> str:
    """Return `one of` the values of a Literal, and the nearest to what was given."""
    return f"one of {', '.join(get_args(values))}{did_you_mean(str(given), get_args(values))}"
