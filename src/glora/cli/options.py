"""Options: made from the settings of a run, and the meaning of the text that users give for them.

Every setting has one option, under one name in every command that takes it. Its help and default are those of `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from typing import Annotated, Any, Literal, get_args

from cyclopts import Group, Parameter, Token

from glora.experiments.config import DEFAULT_METHODS, DEFAULT_SEEDS, SETTINGS, SearchOptions, Setting
from glora.experiments.errors import repeated


class UsageError(ValueError):
    """A request on the command line that does not make sense."""


_GROUPS = {
    "comparison": Group("What is compared", sort_key=2),
    "training": Group("Training, the same for all methods", sort_key=3),
    "allocation": Group("GLoRA", sort_key=4),
}
_SHARING = Group("Many machines", sort_key=5)

OTHER_NAMES = {"learning_rate": ("--lr", "--learning-rate"), "rank": ("--rank", "-r")}
"""Setting -> its options where they are not its own name."""

REPEATED = {"method", "seed"}
"""Settings that a comparison has several of, by `--methods` and `--seeds`."""


def share_of(text: str) -> float:
    """Read 95% and 0.95 as the same share."""
    return float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)


def _share(_type: Any, tokens: Sequence[Token]) -> float:
    try:
        return share_of(tokens[0].value)
    except ValueError:
        raise ValueError(f"write a share such as 95% or 0.95, not {tokens[0].value!r}") from None


def _option(setting: Setting, group: Group | None, default: Any) -> tuple[str, Any, None]:
    """The field of a command's settings; it is None unless the user gives the option, and `default` is only shown."""
    types = get_args(setting.type) or (setting.type,)
    kind: Any = setting.type
    if float in types:
        kind = float
    elif str in types or Ellipsis in get_args(types[0]):
        kind = str
    parameter = Parameter(
        name=OTHER_NAMES.get(setting.name),
        converter=_share if setting.name == "energy" else None,
        help=setting.description,
        group=group or _GROUPS[setting.group],
        negative="--no-" + setting.name.replace("_", "-") if bool in types else "",
        show_default=False if default is None else lambda _none: str(default),
    )
    return setting.name, Annotated[kind | None, parameter], None


def settings_type(names: Sequence[str], group: Group | None = None, **defaults: Any) -> Any:
    """Return the type of a command's parameter that takes these settings as options, by default in their own groups.

    `defaults` are those of what the command calls, where they are not those of a run.
    """
    known = {name: SETTINGS[name].default for name in names} | defaults
    settings = make_dataclass("Settings", [_option(SETTINGS[name], group, known[name]) for name in names])
    settings.__module__ = __name__  # cyclopts expands no type of the standard library, which this would seem to be
    return Annotated[settings | None, Parameter(name="*")]


def given(settings: Any) -> dict[str, Any]:
    """Return the settings whose options the user gave."""
    if settings is None:
        return {}
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    if values.get("target_modules") is not None:
        values["target_modules"] = names_of(values["target_modules"])
    return {name: value for name, value in values.items() if value is not None}


ComparisonSettings = settings_type([name for name in SETTINGS if name not in {*REPEATED, "held_out"}])
RanksSettings = settings_type(
    [
        *("model", "trust_remote_code", "task", "data_dir", "batch_size", "max_length"),
        *("rank", "lora_alpha", "target_modules", "total_rank", "budget", "min_rank", "max_rank"),
    ],
    min_rank=1,
)

CutSettings = settings_type(
    ["average_rank", "energy", "budget", "min_rank", "max_rank"], Group("Size", sort_key=1), budget="parameters"
)

EvaluationSettings = settings_type(
    ["task", "data_dir", "model", "trust_remote_code", "eval_limit", "batch_size", "max_length", "max_new_tokens"],
    Group("Evaluation, if --task is given", sort_key=2),
    task=None,
    model=None,
)


def option_of(setting: str) -> str:
    """Return the option of a setting that has no other name."""
    return "--" + setting.replace("_", "-")


Output = Parameter(name=("--output", "-o"), help="Folder for the records and the report.")
Plan = Annotated[bool, Parameter(help="Show the plan and stop.")]
Methods = Annotated[
    str | None,
    Parameter(
        group=_GROUPS["comparison"],
        help=f"Methods, with commas; glora:keep=svd is a variant. Default: {','.join(DEFAULT_METHODS)}.",
    ),
]
Seeds = Annotated[
    str | None,
    Parameter(group=_GROUPS["comparison"], help=f"Seeds, with commas. Default: {','.join(map(str, DEFAULT_SEEDS))}."),
]
Preset = Annotated[str | None, Parameter(group=_GROUPS["comparison"], help="Start from a preset: demo, demo-llm.")]


@dataclass(frozen=True)
class _SearchSettings(SearchOptions):
    """Options of a search, two of them under other names."""

    trials: Annotated[int, Parameter(name=("--trials", "-n"))] = SearchOptions.trials
    seed: Annotated[int, Parameter(name="--search-seed")] = SearchOptions.seed


SEARCH = _SearchSettings()
Search = Annotated[_SearchSettings, Parameter(name="*")]


@dataclass(frozen=True)
class SharingOptions:
    """Workers that share the work of a command."""

    storage: Annotated[
        str | None,
        Parameter(
            group=_SHARING,
            help="Database by which processes share the work, such as postgresql://user:password@host/database. "
            "Default: none; for a search, SQLite in the output folder.",
        ),
    ] = None
    study: Annotated[
        str | None, Parameter(group=_SHARING, help="Name in the database. Default: the output folder's.")
    ] = None
    claim: Annotated[
        Literal["seeds", "runs"] | None,
        Parameter(
            group=_SHARING,
            help="What a process takes at a time: a seed with all methods, whose times can be compared, or one run. "
            "Default: seeds.",
        ),
    ] = None


NOT_SHARED = SharingOptions()
Shared = Annotated[SharingOptions, Parameter(name="*")]
Verbosity = Annotated[
    int,
    Parameter(
        name=("--verbose", "-v"),
        count=True,
        show_default=False,
        help="-v: the libraries' warnings too; -vv: all messages.",
    ),
]
Debug = Annotated[bool, Parameter(help="Show a traceback when something goes wrong.", show_default=False)]


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Return names with commas between them; None if nothing is given."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def seeds_of(text: str | None) -> tuple[int, ...] | None:
    """Return numbers with commas between them; None if nothing is given.

    Raises:
        UsageError: one of them is not a whole number.
    """
    try:
        return None if text is None else tuple(int(seed) for seed in names_of(text) or ())
    except ValueError:
        raise UsageError(f"seeds={text!r}: seeds are whole numbers with commas between them, such as 0,1,2") from None


def assignments_of(option: str, texts: Sequence[str] | None) -> dict[str, str]:
    """Return the NAME=VALUE pairs of an option that can be repeated.

    Raises:
        UsageError: a text has another form, or a name is repeated.
    """
    pairs = [tuple(part.strip() for part in text.partition("=")) for text in texts or ()]
    for name, sign, value in pairs:
        if not (name and sign and value):
            form = "NAME=RANGE" if option == "--range" else "NAME=VALUE"
            raise UsageError(f"{option} {name}{sign}{value}: write {form}")
    for error in repeated(option, [name for name, _, _ in pairs]):
        raise UsageError(error)
    return {name: value for name, _, value in pairs}
