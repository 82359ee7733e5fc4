"""Resolve names in free text, as in an experiment file, to the names of the registries.

"DeBERTa-v3-base (86M)" is the model deberta-v3-base, "GLUE MNLI" the task mnli, "Matthews Correlation" a metric, "Wall-clock
Training Time" a column of the report, "Vanilla LoRA" the method lora. Remarks in brackets, case, separators and filler words do
not count. The rest must be a known name, because a wrong guess costs days of training: "Macro F1" is not F1.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from glora.experiments.data.custom_data import looks_like_custom_data
from glora.experiments.data.metric import METRICS
from glora.experiments.data.registry import TASKS, find_task, resolve_task
from glora.experiments.methods.registry import METHODS, find_method, split_variant
from glora.experiments.models.registry import MODELS, ModelEntry
from glora.experiments.models.resolution import resolve_model
from glora.messages import did_you_mean, plain

COLUMNS: dict[str, tuple[str, ...]] = {
    "training time": ("time", "train time", "training seconds", "runtime", "training duration"),
    "time per step": ("step time", "seconds per step", "time per training step"),
    "peak memory": ("memory", "gpu memory", "peak gpu memory", "memory usage", "memory footprint"),
    "adapter parameters": ("parameters", "trainable parameters", "parameter count", "number of trainable parameters"),
    "ranks": ("rank", "total rank", "rank allocation", "rank distribution"),
}
"""Column that the report has for every task -> its other names."""

QUIET: dict[str, tuple[str, ...]] = {
    "metrics": ("dev", "development", "validation", "val", "set", "wall", "clock", "score", "coefficient", "percent"),
    "datasets": ("the", "dataset", "data", "set", "benchmark", "task", "corpus"),
    "methods": ("the", "method", "baseline", "vanilla", "plain", "standard", "ordinary", "uniform", "fixed", "rank"),
}
"""Filler words, left out before a name is looked up. "Test" is not among them: GLUE's test labels are not public."""


class UnknownNameError(ValueError):
    """A name that is in no registry."""


def find_model(text: str) -> ModelEntry | None:
    """Return the registered model that the text is a spelling of, or None."""
    spelled = {
        plain(spelling): entry
        for entry in MODELS.values()
        for spelling in (entry.name, entry.source, *entry.aliases)
        if spelling
    }
    return spelled.get(plain(text)) or spelled.get(plain(_without_remarks(text)))


def resolve_model_name(text: str) -> str:
    """Return a registered name, a hub id with its owner, or a folder that holds a model.

    Raises:
        UnknownNameError: none of them.
        ModelNotFoundError: a path without a model.
    """
    entry = find_model(text)
    if entry is not None:
        return entry.name
    name = text.strip()
    if "/" in name or "\\" in name or name.startswith((".", "~")) or Path(name).is_dir():
        resolve_model(name)
        return name
    remedy = "Use a name of `glora list models`, a hub id with its owner (google-bert/bert-base-uncased), or a folder"
    raise _unknown(text, "model", _without_remarks(text), MODELS, remedy)


def resolve_dataset_name(text: str) -> str:
    """Return a name of `TASKS`, or the path of a custom data file.

    Raises:
        UnknownNameError: neither of them.
        DataNotFoundError, DataError: a path without such data.
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
    raise _unknown(text, "data set", key, TASKS, "Use a name of `glora list tasks`, or a path such as data/train.csv")


def resolve_metric_name(text: str) -> str:
    """Return a name of `METRICS` or `COLUMNS`.

    Raises:
        UnknownNameError: neither of them.
    """
    key = _key(text, "metrics")
    spelled = _spellings({**COLUMNS, **{name: metric.aliases for name, metric in METRICS.items()}}, "metrics")
    if key in spelled:
        return spelled[key]
    known = [*METRICS, *COLUMNS]
    raise _unknown(text, "metric", key, known, f"Metrics: {', '.join(known)}")


def measured_as(metric: str, measured: Container[str]) -> str | None:
    """Return the name of a metric or column on a task with these metrics; None if the task does not have it.

    The accuracy of a model that writes its answers is its exact match.
    """
    if metric in measured or metric in COLUMNS:
        return metric
    return "exact_match" if metric == "accuracy" and "exact_match" in measured else None


def resolve_method_name(text: str) -> str:
    """Return a name of `METHODS`, or a variant, whose method may be spelled freely: `GLoRA:budget=parameters`.

    Raises:
        UnknownNameError: there is no such method.
        ValueError: the variant has a setting that it cannot have.
    """
    text, settings = split_variant(text)
    spelled = _spellings({name: (plain(name), *method.aliases) for name, method in METHODS.items()}, "methods")
    for key in (plain(text.replace("+", "plus")), _key(text, "methods")):  # LoRA+ is not LoRA
        if key in spelled:
            return find_method(spelled[key] + settings).name
    raise _unknown(text, "method", _key(text, "methods"), METHODS, f"Methods: {', '.join(METHODS)}")


def _unknown(text: str, what: str, key: str, known: Iterable[str], remedy: str) -> UnknownNameError:
    return UnknownNameError(f"{text!r} is not a known {what}{did_you_mean(key, known) or '.'} {remedy}")


def _without_remarks(text: str) -> str:
    return re.sub(r"\(.*?\)|\[.*?\]", " ", text).strip()


def _key(text: str, kind: str) -> str:
    """The letters and digits of a name, without remarks and filler words. `LoRA+` is `loraplus`."""
    words = re.findall(r"[a-z0-9]+", _without_remarks(text).lower().replace("+", " plus "))
    return "".join([word for word in words if word not in QUIET[kind]]) or "".join(words)


def _spellings(names: Mapping[str, tuple[str, ...]], kind: str) -> dict[str, str]:
    return {_key(spelling, kind): name for name, others in names.items() for spelling in (name, *others)}
