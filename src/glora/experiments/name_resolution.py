"""Names as people write them in an experiment file, found in the registries.

"DeBERTa-v3-base (86M)" is the model deberta-v3-base, "GLUE MNLI" the task mnli, "Matthews Correlation" a metric,
"Wall-clock Training Time" a column of the report, "Vanilla LoRA" the method lora. A remark in brackets, the case and the
separators do not count, nor do words that say nothing; whatever is left must be a known name, because a guess that is
wrong costs days of training. "Macro F1" is not F1, and not taken for it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from glora.experiments.data.custom_data import looks_like_custom_data
from glora.experiments.data.registry import TASKS, find_task, resolve_task
from glora.experiments.methods.registry import METHODS, find_method, split_variant
from glora.experiments.models.registry import MODELS, ModelEntry, resolve_model
from glora.experiments.names import plain

METRICS: dict[str, tuple[str, ...]] = {
    "accuracy": ("acc",),
    "matthews_correlation": ("matthews", "mcc", "matthews corrcoef"),
    "f1": ("f1 measure",),
    "pearson": ("pearson correlation", "pearson r"),
    "spearman": ("spearman correlation", "spearman rho", "spearman rank correlation"),
    "exact_match": ("exact final number", "final number", "em"),
    "loss": ("heldout loss", "held out loss", "eval loss", "evaluation loss", "cross entropy", "cross entropy loss"),
    "perplexity": ("ppl", "heldout perplexity", "held out perplexity"),
}
"""What the tasks are scored by -> its other names."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "training time": ("time", "train time", "training seconds", "runtime", "training duration"),
    "time per step": ("step time", "seconds per step", "time per training step"),
    "peak memory": ("memory", "gpu memory", "peak gpu memory", "memory usage", "memory footprint"),
    "adapter parameters": ("parameters", "trainable parameters", "parameter count", "number of trainable parameters"),
    "ranks": ("rank", "total rank", "rank allocation", "rank distribution"),
}
"""What the report shows of every run, whatever the task -> its other names."""

QUIET: dict[str, tuple[str, ...]] = {
    "metrics": ("dev", "development", "validation", "val", "set", "wall", "clock", "score", "coefficient", "percent"),
    "datasets": ("the", "dataset", "data", "set", "benchmark", "task", "corpus"),
    "methods": ("the", "method", "baseline", "vanilla", "plain", "standard", "ordinary", "uniform", "fixed", "rank"),
}
"""Words that are left out before a name is looked up. "Test" is not among them: GLUE's test labels are not public."""


class UnknownNameError(ValueError):
    """A name that is in no registry; the message has the nearest."""


@dataclass(frozen=True)
class ResolvedMetric:
    """What a person wants to see, and where it is."""

    name: str
    """A metric of the tasks, or a column of the report."""
    is_column: bool
    """Whether every report has it, whatever the task."""


def find_model(text: str) -> ModelEntry | None:
    """The registered model that this is a spelling of, or None."""
    spelled = {
        plain(spelling): entry
        for entry in MODELS.values()
        for spelling in (entry.name, entry.source, *entry.aliases)
        if spelling
    }
    return spelled.get(plain(text)) or spelled.get(plain(_without_remarks(text)))


def resolve_model_name(text: str) -> str:
    """A registered name, a hub id with its owner, or a folder that holds a model.

    Raises:
        UnknownNameError: none of them.
        ModelNotFoundError: it is written as a path, and there is no model.
    """
    entry = find_model(text)
    if entry is not None:
        return entry.name
    name = text.strip()
    if "/" in name or "\\" in name or name.startswith((".", "~")) or Path(name).is_dir():
        resolve_model(name)
        return name
    raise UnknownNameError(
        f"{text!r} is no known model. {_nearest(_without_remarks(text), MODELS)}`glora list models` shows all; a model of the "
        "hub is written with its owner, such as google-bert/bert-base-uncased, and a folder by its path"
    )


def resolve_dataset_name(text: str) -> str:
    """A name of `TASKS`, or data of one's own as it was written.

    Raises:
        UnknownNameError: it is neither.
        DataNotFoundError, DataError: it is written as a path, and there is no such data.
    """
    name = text.strip()
    path = looks_like_custom_data(name)
    key = _key(re.sub(r"^\s*glue\b", "", _without_remarks(text), flags=re.IGNORECASE), "datasets")
    spellings = (name, _without_remarks(name)) if path else (name, _without_remarks(name), key)
    task = next(filter(None, map(find_task, spellings)), None)
    if task is not None:
        return task.name
    if path:
        return resolve_task(name).name
    raise UnknownNameError(
        f"{text!r} is no known data set. {_nearest(key, TASKS)}`glora list tasks` shows all; a data file of one's own is "
        "written by its path, such as data/train.csv"
    )


def resolve_metric_name(text: str) -> ResolvedMetric:
    """A metric or a column of the report.

    Raises:
        UnknownNameError: it is neither.
    """
    key = _key(text, "metrics")
    for names, is_column in ((METRICS, False), (COLUMNS, True)):
        found = _spellings(names, "metrics").get(key)
        if found:
            return ResolvedMetric(found, is_column)
    every = {**_spellings(METRICS, "metrics"), **_spellings(COLUMNS, "metrics")}
    near = dict.fromkeys(every[match] for match in difflib.get_close_matches(key, every, n=6, cutoff=0.45))
    raise UnknownNameError(
        f"{text!r} is nothing that is measured. {_hint(list(near)[:3])}There are {', '.join([*METRICS, *COLUMNS])}"
    )


def measured_as(metric: str, measured: Container[str]) -> str | None:
    """What a metric is called on a task that measures these; None if it is not measured there.

    The accuracy of a model that writes its answers is its exact match.
    """
    if metric in measured:
        return metric
    return "exact_match" if metric == "accuracy" and "exact_match" in measured else None


def resolve_method_name(text: str) -> str:
    """A name of `METHODS`, or a variant, whose method may be spelled freely: `GLoRA:budget=parameters`.

    Raises:
        UnknownNameError: there is none.
        ValueError: the variant has a setting that it cannot have.
    """
    text, settings = split_variant(text)
    spelled = _spellings({name: (plain(name), *method.aliases) for name, method in METHODS.items()}, "methods")
    for key in (plain(text.replace("+", "plus")), _key(text, "methods")):  # LoRA+ is not LoRA
        if key in spelled:
            return find_method(spelled[key] + settings).name
    raise UnknownNameError(
        f"{text!r} is no known method. {_nearest(_key(text, 'methods'), METHODS)}The methods are {', '.join(METHODS)}"
    )


def _without_remarks(text: str) -> str:
    return re.sub(r"\(.*?\)|\[.*?\]", " ", text).strip()


def _key(text: str, kind: str) -> str:
    """What is left of a name: letters and digits, without brackets and words that say nothing. `LoRA+` is `loraplus`."""
    words = re.findall(r"[a-z0-9]+", _without_remarks(text).lower().replace("+", " plus "))
    return "".join([word for word in words if word not in QUIET[kind]]) or "".join(words)


def _spellings(names: Mapping[str, tuple[str, ...]], kind: str) -> dict[str, str]:
    return {_key(spelling, kind): name for name, others in names.items() for spelling in (name, *others)}


def _nearest(name: str, known: Iterable[str]) -> str:
    spelled = {plain(other): other for other in known}
    return _hint([spelled[match] for match in difflib.get_close_matches(plain(name), spelled, n=3, cutoff=0.5)])


def _hint(names: list[str]) -> str:
    return f"Nearest: {', '.join(names)}. " if names else ""
