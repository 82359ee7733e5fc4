"""The settings of one training run: every setting that can change its result, and nothing else.

A `RunConfig` is validated whole before anything is loaded, is stored in the run's record, and its `key` names the
record's file, so that a run which is finished is recognised and not run again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from docstring_parser import parse
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_serializer, field_validator, model_validator

from glora.config import ConfigurationError, RankAllocationConfig
from glora.experiments.publishing import published_name, without_digest

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_TASK = "stdlib-docs"
DEFAULT_METHODS = ("lora", "glora:rule=spectrum", "glora")
DEFAULT_SEEDS = (0, 1, 2)
GENERATIVE_MAX_LENGTH = 1024
"""Default of `max_length` where answers are written. Nothing is padded to it, so it costs only those that are so long."""
DEFAULT_MAX_NEW_TOKENS = 512

MAX_KEY_BYTES = 190


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        trials: Trials of each method, on each model and task; fewer if all ranges are lists with fewer combinations.
        held_out: Share of the training examples that trials are judged by.
        seed: Seeds what the search chooses.
    """

    trials: int = 20
    held_out: float = 0.2  # of RTE's 2,490 examples 498, whose accuracy is known to ± 2 points
    seed: int = 0


_NOT_A_BOOLEAN = "expected a number or a text, not true or false"


def not_a_boolean(value: Any) -> Any:
    """Return the value of a setting that is a number or a text.

    Raises:
        ValueError: it is true or false, which YAML also reads from yes and on, and pydantic takes for 1 and 0.
    """
    if isinstance(value, bool):
        raise ValueError(_NOT_A_BOOLEAN)
    return value


class RunConfig(BaseModel):
    """One run: a model, a task, a method and a seed, with the schedule they share.

    The defaults are those of the study that GLoRA was proposed for: rank 8, AdamW with learning rate 2e-4, batches of
    32, three epochs, one epoch of warm-up, beta 0.9.
    """

    # defaults are validated as given values are, so that 3 and 3.0 epochs are one configuration with one key
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    model: str = Field(DEFAULT_MODEL, description="Model: a name of `glora list models`, a hub id or a local folder.")
    task: str = Field(DEFAULT_TASK, description="Task: a name of `glora list tasks`, or your own data file.")
    method: str = Field("glora", description="Method: a name of `glora list methods`.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seeds the head's initialisation, the adapters and the data order."
    )

    rank: int = Field(8, ge=1, le=2**16, description="Rank r of uniform LoRA; every method's budget follows from it.")
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
    batch_size: int = Field(32, ge=1, le=2**20, description="Examples per optimizer step.")
    epochs: float = Field(3, gt=0, le=1e6, description="Passes over the training data.")
    lr_scheduler: str = Field("linear", description="Learning-rate schedule, as transformers names it.")
    lr_warmup: float = Field(0.06, ge=0, lt=1, description="Share of all steps over which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_length: int = Field(
        128,
        ge=8,
        le=2**24,
        description="Tokens per example; longer ones are truncated. Where answers are written, 1024 by default.",
    )
    group_by_length: bool | None = Field(
        None,
        description="Whether a batch has examples of about one length, so that less is padding. Default: batches are drawn "
        "at random.",
    )
    train_limit: int | None = Field(
        None, ge=1, le=2**40, description="Use at most this many training examples, the same ones for every seed."
    )
    eval_limit: int | None = Field(None, ge=1, le=2**40, description="Evaluate on at most this many examples.")
    held_out: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="For tuning: evaluate on this share of the training examples, left out of training, and not on the "
        "task's evaluation splits, which are not read.",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=0,
        le=2**24,
        description="Where answers are written: a model stops after this many tokens. At 0 it writes none, and the loss of the "
        "reference answers is compared. Default: 512.",
    )
    temperature: float | None = Field(
        None, gt=0, description="Where answers are written: they are drawn at this temperature. Default: greedily."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16 trains under autocast; a causal model's own weights, which are frozen, are then loaded in it.",
    )

    trust_remote_code: bool = Field(
        False,
        description="Run Python code that comes with the model, with your rights. Read it first; by default such a model is an "
        "error.",
    )

    allocation: RankAllocationConfig = Field(
        RankAllocationConfig(), description="How ranks are allocated, for the methods that allocate them."
    )

    start_factor: float = Field(
        4,
        gt=1,
        le=64,
        description="With rule=spectrum or uniform: rank that the adapter starts with, as a multiple of the average rank that "
        "the cut leaves; with energy, of the rank.",
    )

    report_to: str | None = Field(
        None,
        # Who watches a run changes nothing of it.
        exclude=True,
        description="Where the runs can be watched: names of Trainer's report_to, with commas, such as tensorboard or wandb; "
        "neither recorded nor part of the key.",
    )
    save_adapters: bool = Field(
        False,
        exclude=True,
        description="Keep each trained adapter in the output folder, in `adapters` and a folder named by its record; neither "
        "recorded nor part of the key, so runs that are finished already leave none.",
    )
    data_dir: str | None = Field(
        None,
        # The place of the data on this machine; the record identifies them by their fingerprint.
        exclude=True,
        description="Folder with the task's own files; neither recorded nor part of the key.",
    )

    @model_validator(mode="before")
    @classmethod
    def _nest_allocation_settings(cls, given: Any) -> Any:
        """Accept the allocation's settings by their flat names, as users write them."""
        if not isinstance(given, Mapping):
            return given
        nested = {name: value for name, value in given.items() if name not in _NESTED}
        flat = {name: value for name, value in given.items() if name in _NESTED}
        if "warmup_steps" in flat:
            flat["warmup_steps"] = _whole_steps(flat["warmup_steps"])
        if flat:
            before = nested.get("allocation", {})
            nested["allocation"] = {**(vars(before) if isinstance(before, RankAllocationConfig) else before), **flat}
        return nested

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        nested = value if info.field_name == "allocation" and isinstance(value, Mapping) else {}
        if errors := [f"{name}={v}: {_NOT_A_BOOLEAN}" for name, v in nested.items() if isinstance(v, bool)]:
            raise ConfigurationError(errors)
        return value if bool in (kind, *get_args(kind)) else not_a_boolean(value)

    @field_validator("allocation")
    @classmethod
    def _bounds_for_all_matrices(cls, allocation: RankAllocationConfig) -> RankAllocationConfig:
        bounds = {"min_rank": allocation.min_rank, "max_rank": allocation.max_rank}
        errors = [f"{name} must be one int for all matrices" for name, v in bounds.items() if isinstance(v, Mapping)]
        if errors:
            raise ConfigurationError(errors)
        return allocation

    @field_serializer("model", "task")
    def _record_name(self, name: str) -> str:
        return published_name(name)

    @field_serializer("allocation")
    def _record_allocation(self, allocation: RankAllocationConfig) -> dict[str, Any]:
        return {name: value for name, value in allocation.to_dict().items() if name in _NESTED}

    def __eq__(self, other: object) -> bool:
        """Return whether all settings are equal; a record has the defaults filled in that depend on the rule."""
        return isinstance(other, RunConfig) and self.settings() == other.settings()

    def __hash__(self) -> int:
        """Return the hash of the key."""
        return hash(self.key)

    def setting(self, name: str) -> Any:
        """Return a setting by its flat name, such as `beta`."""
        return self.allocation.to_dict()[name] if name in _NESTED else getattr(self, name)

    def settings(self) -> dict[str, Any]:
        """Return all settings by their flat names."""
        return {name: self.setting(name) for name in SETTINGS}

    def recorded_settings(self) -> dict[str, Any]:
        """Return the settings that can change a result, by their flat names, fit for JSON."""
        recorded = self.model_dump(mode="json")
        return recorded | recorded.pop("allocation")

    def with_settings(self, settings: Mapping[str, Any]) -> RunConfig:
        """Return a copy with these settings, validated as a whole.

        Args:
            settings: flat names and values.

        Raises:
            ValidationError: a setting does not exist or a value is not allowed.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return RunConfig.model_validate({**given, **settings})

    @property
    def alpha(self) -> float:
        """LoRA's alpha, the default filled in: 2 * rank."""
        return self.lora_alpha if self.lora_alpha is not None else 2.0 * self.rank

    @property
    def writes_answers(self) -> bool:
        """False if the loss is compared where answers could be written."""
        return self.max_new_tokens != 0

    @property
    def key(self) -> str:
        """Readable name of the run's record, unique to this configuration: `task--model--method--r8--seed0--<digest>`.

        The digest leaves out settings that are None, and trust_remote_code and allocation settings at their defaults, so that
        finished runs keep their names when settings are added. At most 190 bytes long, because file systems allow 255.
        """
        defaults = {name: SETTINGS[name].default for name in ("start_factor", "trust_remote_code")}
        defaults |= self._record_allocation(RankAllocationConfig())
        settings = {name: value for name, value in self.recorded_settings().items() if value != defaults.get(name)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        end = f"--r{self.rank}--seed{self.seed}--{digest}"
        names = (without_digest(settings[name]).rsplit("/", 1)[-1] for name in ("task", "model", "method"))
        slug = "--".join("".join(c if c.isalnum() or c in ".-" else "-" for c in name) for name in names)
        return slug.encode()[: MAX_KEY_BYTES - len(end)].decode(errors="ignore") + end


def _whole_steps(value: Any) -> Any:
    """Read 300.0 and "3e2" as 300 steps; below 1, `warmup_steps` is a share."""
    try:
        number = float(not_a_boolean(value))
    except (TypeError, ValueError):
        return value
    return int(number) if number >= 1 and number.is_integer() else value


@dataclass(frozen=True)
class Setting:
    """One setting of a run, as the command line, experiment files and reports present it."""

    name: str
    type: Any
    default: Any
    description: str
    group: Literal["comparison", "training", "allocation"]
    recorded: bool = True
    """False for settings that cannot change a result, such as where the data is."""

    @property
    def choices(self) -> tuple[str, ...]:
        """Names that the setting allows; empty where it takes numbers or free text."""
        types = (self.type, *get_args(self.type))
        return tuple(choice for each in types if get_origin(each) is Literal for choice in get_args(each))


def _describe_settings() -> dict[str, Setting]:
    comparison = {
        "model",
        "trust_remote_code",
        "task",
        "method",
        "seed",
        "data_dir",
        "report_to",
        "save_adapters",
        "train_limit",
        "eval_limit",
        "held_out",
    }
    found = {
        name: Setting(
            name,
            field.annotation,
            field.default,
            field.description or "",
            "comparison" if name in comparison else "allocation" if name in ALLOCATION_SETTINGS else "training",
            recorded=not field.exclude,
        )
        for name, field in RunConfig.model_fields.items()
        if name != "allocation"
    }
    described = {entry.args[1]: entry.description or "" for entry in parse(RankAllocationConfig.__doc__ or "").params}
    types = get_type_hints(RankAllocationConfig)
    for field in fields(RankAllocationConfig):
        if field.name in _NESTED:
            text = " ".join(described[field.name].split())
            kind = _without_mapping(types[field.name])
            found[field.name] = Setting(field.name, kind, field.default, text, "allocation")
    order = sorted(
        found.values(), key=lambda s: (s.group == "allocation", s.group == "allocation" and s.name not in _NESTED)
    )
    return {setting.name: setting for setting in order}


def _without_mapping(annotation: Any) -> Any:
    """Return the type of a bound that is the same for all matrices."""
    kinds = [kind for kind in get_args(annotation) if get_origin(kind) is not Mapping]
    return functools.reduce(operator.or_, kinds) if len(kinds) < len(get_args(annotation)) else annotation


def settings_schema() -> dict[str, Any]:
    """Return the JSON schema of each setting by its flat name."""
    schema = RunConfig.model_json_schema()
    properties = {**schema["properties"], **schema["$defs"]["RankAllocationConfig"]["properties"]}
    return {name: {**properties[name], "description": setting.description} for name, setting in SETTINGS.items()}


# The adapter is the method's own, and the run's seed seeds it.
_NESTED = frozenset(field.name for field in fields(RankAllocationConfig)) - {"adapter_name", "seed"}

ALLOCATION_SETTINGS = _NESTED | {"start_factor"}
"""Settings that only methods with their own rank budget read."""

SETTINGS: Mapping[str, Setting] = _describe_settings()
"""Every setting of a run by its flat name: what users can write in files, options, variants and search ranges."""
