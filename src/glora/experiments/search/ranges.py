"""What an experiment file says of a search: `"1e-4-5e-4"`, `"0.8-0.99"`, `"96,128,160"`, `"500-1500"`.

    LOW-HIGH        both whole numbers, of a setting that takes them: integers
    LOW-HIGH        an exponent in one of them, or a learning rate: real numbers, searched on a log scale
    LOW-HIGH        anything else: real numbers, searched evenly
    A,B,C  or [A, B, C]   one of these values
    LOW-HIGH log    (or `linear`) says the scale itself

`-` may also be a dash, `to` or `..`. Every bound and value is one that `RunConfig` accepts.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError

from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.errors import faults_of
from glora.experiments.names import plain

SEARCHABLE = tuple(
    name
    for name in SETTINGS
    if name not in {"model", "task", "method", "seed", "data_dir", "report_to", "eval_limit", "held_out"}
)
"""What changes how well a method does; the others say what is compared, and on what."""

SPELLINGS = {
    "lr": "learning_rate",
    "r": "rank",
    "lorarank": "rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "emabeta": "beta",
    "emadecay": "beta",
    "rtotal": "total_rank",
    "rankbudget": "total_rank",
    "twarmup": "warmup_steps",
    "trainingepochs": "epochs",
    "numepochs": "epochs",
    "numtrainepochs": "epochs",
}
"""Other names by which the settings go, as letters only."""

LOG_BY_NATURE = frozenset({"learning_rate"})
REAL_BY_NATURE = frozenset({"learning_rate", "lora_alpha", "lora_dropout", "lr_warmup", "weight_decay", "beta"})
"""Written `0-1`, these are meant to be real numbers all the same."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_INTERVAL = re.compile(
    rf"({_NUMBER})\s*(?:-|–|—|\.\.|to)\s*({_NUMBER})\s*[(\[]?\s*(log|linear)?(?:[ -]?(?:scale|uniform))?\s*[)\]]?",
    re.IGNORECASE,
)


class SearchRangeError(ValueError):
    """A search that cannot be understood or contradicts itself."""


@dataclass(frozen=True)
class SearchRange:
    """Which values of a setting are searched; the fields are those of Optuna's `suggest_*`.

    Attributes:
        setting: a field of `RunConfig`.
        kind: "float", "integer" or "categorical".
        low: smallest value, of an interval.
        high: largest value, of an interval; it is among those searched.
        log: whether the interval is searched on a log scale.
        choices: the values, if it is categorical.
    """

    setting: str
    kind: Literal["float", "integer", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def __str__(self) -> str:
        if self.kind == "categorical":
            return f"{self.setting} one of {', '.join(map(str, self.choices))}"
        scale = "integer" if self.kind == "integer" else "log" if self.log else "linear"
        scale += ", log" if self.kind == "integer" and self.log else ""
        return f"{self.setting} {self.low:g} to {self.high:g} ({scale})"


def find_setting(name: str) -> str:
    """The setting that a search names: `beta (EMA)` is `beta`, `Learning rate` is `learning_rate`.

    Raises:
        SearchRangeError: there is none, naming the nearest.
    """
    spelled = {plain(field): field for field in SEARCHABLE} | SPELLINGS
    key = plain(re.sub(r"\(.*?\)", "", name))
    if key in spelled:
        return spelled[key]
    near = dict.fromkeys(spelled[match] for match in difflib.get_close_matches(key, spelled, n=3))
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    raise SearchRangeError(f"{name!r} is no setting that can be searched. {hint}There are {', '.join(SEARCHABLE)}")


def find_range(name: str, text: object) -> SearchRange:
    """A search as people write it: `beta (EMA)`, `0.8-0.99`.

    Raises:
        SearchRangeError: see `find_setting` and `parse_range`.
    """
    return parse_range(find_setting(name), text)


def parse_range(setting: str, text: object) -> SearchRange:
    """Understand the range of a setting.

    Args:
        setting: a field of `RunConfig`.
        text: as above; or a list of values, or one value.

    Raises:
        SearchRangeError: it cannot be understood, is empty, its lower bound is not below its upper one, a log range does
            not begin above 0, a value is given twice, or a value is none that the setting may have.
    """
    if isinstance(text, list):
        return _one_of(setting, text, text)
    written = str(text).strip()
    interval = _INTERVAL.fullmatch(written)
    if interval:
        low, high, scale = interval.groups()
        return _between(setting, written, low, high, (scale or "").lower())
    return _one_of(setting, written, [part.strip() for part in written.split(",")] if written else [])


def _between(setting: str, written: str, low_text: str, high_text: str, scale: str) -> SearchRange:
    low, high = float(low_text), float(high_text)
    where = f"{setting}: the range {written!r}"
    if low > high:
        raise SearchRangeError(f"{where} has {low_text} below and {high_text} above; write '{high_text}-{low_text}'")
    if low == high:
        raise SearchRangeError(f"{where} is one value; write '{low_text}', or two bounds that differ")
    exponent = "e" in (low_text + high_text).lower()
    log = scale == "log" or (not scale and (exponent or setting in LOG_BY_NATURE))
    if log and low <= 0:
        linear = "" if scale == "log" else f", or say '{low_text}-{high_text} linear'"
        raise SearchRangeError(f"{where} is searched on a log scale, which {low_text} is not on; begin above 0{linear}")
    whole = low.is_integer() and high.is_integer() and "." not in low_text + high_text
    for bound in (low, high):
        _accepted(setting, bound, where)
    integer = not _takes_reals(setting) or (whole and setting not in REAL_BY_NATURE)
    return SearchRange(setting, "integer" if integer else "float", low=low, high=high, log=log)


def _takes_reals(setting: str) -> bool:
    annotation = SETTINGS[setting].type
    return float in (annotation, *get_args(annotation))


def _one_of(setting: str, written: object, parts: list[Any]) -> SearchRange:
    where = f"{setting}: the range {written!r}"
    if not parts or "" in parts:
        what = "is empty" if not parts else "has a value missing"
        raise SearchRangeError(f"{where} {what}; write LOW-HIGH such as '0.8-0.99', or values such as '96,128,160'")
    choices = tuple(_accepted(setting, part, where) for part in parts)
    twice = sorted({str(choice) for choice in choices if choices.count(choice) > 1})
    if twice:
        raise SearchRangeError(f"{where} has {', '.join(twice)} more than once")
    return SearchRange(setting, "categorical", choices=choices)


def _accepted(setting: str, value: object, where: str) -> Any:
    """The value as the configuration holds it."""
    try:
        return RunConfig.model_validate({setting: value}).setting(setting)
    except ValidationError as error:
        raise SearchRangeError(f"{where}: {'; '.join(faults_of(error))}") from error
