"""What a search is asked to do, by an experiment file or by settings on the command line, as arguments of `plan_search`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glora.experiments.config import DEFAULT_METHODS, DEFAULT_SEEDS
from glora.experiments.errors import collect, repeated
from glora.experiments.experiment import load_experiment
from glora.experiments.plan import InvalidComparisonError
from glora.experiments.search.ranges import SearchRange, find_range


def search_request(
    settings: Mapping[str, Any],
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    ranges: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A search of one model on one task.

    Args:
        settings: fields of `RunConfig` that have a value, and so are not searched.
        methods: what is compared.
        seeds: of the runs that are reported.
        ranges: what is searched, as an experiment file writes it.

    Raises:
        InvalidComparisonError: naming every range that cannot be understood, contradicts itself, or is given twice.
    """
    return {
        "pairs": [dict(settings)],
        "methods": DEFAULT_METHODS if methods is None else tuple(methods),
        "seeds": DEFAULT_SEEDS if seeds is None else tuple(seeds),
        "ranges": _understood(ranges or {}),
    }


def search_request_of_file(
    path: Path, given: Mapping[str, Any] | None = None, *, ranges: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The search of an experiment file.

    Args:
        path: the file.
        given: fields that win over the file's, as for `load_experiment`.
        ranges: ranges that win over the file's.

    Raises:
        FileNotFoundError, IsADirectoryError, MalformedFileError, InvalidExperimentError: see `load_experiment`.
        InvalidComparisonError: as for `search_request`.
    """
    own = _understood(ranges or {})
    named = {found.setting for found in own}
    experiment = load_experiment(path, given)
    return {
        "pairs": [pair.settings for pair in experiment.pairs],
        "methods": experiment.methods,
        "seeds": experiment.seeds,
        "ranges": [*own, *(found for found in experiment.ranges if found.setting not in named)],
    }


def _understood(ranges: Mapping[str, str]) -> list[SearchRange]:
    faults: list[str] = []
    attempts = [collect(functools.partial(find_range, name, text), faults) for name, text in ranges.items()]
    found = [each for each in attempts if each is not None]
    faults += repeated("range", [each.setting for each in found])
    if faults:
        raise InvalidComparisonError(faults)
    return found
