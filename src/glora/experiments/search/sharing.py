"""What processes must agree on to share runs: the database, a name for the work, what is claimed, and what makes a run.

What a process claims is a slot of a study (`shared_trials`). There is a study for each model, data set and seed, so that
processes which ask for different seeds share those that they have in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.plan import Plan, PlannedRun
from glora.experiments.report.number_format import short_name
from glora.experiments.search.shared_trials import LONGEST_NAME
from glora.experiments.search.storage import SharedStorage, StorageError, open_storage

CLAIMS = ("seeds", "runs")
"""What a process can claim at a time."""


@dataclass(frozen=True)
class Sharing:
    """What processes have in common that share their runs.

    Attributes:
        storage: the database.
        name: what they call this work; those that use the same name share it.
        claim: "seeds": a process takes a seed and makes the runs of all methods; "runs": it takes one run.
    """

    storage: SharedStorage
    name: str
    claim: str = "seeds"


def open_sharing(url: str | None, study: str | None, claim: str | None, output: Path) -> Sharing:
    """What the user gives as --storage, --study and --claim; the name is the output folder's unless it is given.

    Raises:
        StorageError: the storage cannot be used, the claim is unknown, or there is a study or a claim and no storage.
    """
    if url is None:
        given = f"study={study!r}" if study is not None else f"claim={claim!r}"
        raise StorageError(f"{given} is for runs that are shared; name the database: --storage URL")
    if claim not in (None, *CLAIMS):
        raise StorageError(f"claim={claim!r} is unknown; a process claims seeds, or runs")
    return Sharing(open_storage(url), study or output.resolve().name, claim or CLAIMS[0])


def slots_of(plan: Plan, claim: str) -> dict[int, dict[str, list[PlannedRun]]]:
    """Seed -> what is claimed at a time -> its runs."""
    slots: dict[int, dict[str, list[PlannedRun]]] = {}
    for run in plan.runs:
        seed, method = run.config.seed, run.config.method
        slot = f"seed {seed}" if claim == "seeds" else f"seed {seed}, {method}"
        slots.setdefault(seed, {}).setdefault(slot, []).append(run)
    return slots


def plan_names(sharing: Sharing, plans: Sequence[Plan]) -> list[str]:
    """What each plan is called in the storage.

    A model that lies in different folders on two machines has different keys and cannot be shared. So the folder is not part
    of the name, where it can be left out, but of the terms: then it is refused instead of being made twice.
    """
    pairs = [(plan.runs[0].config.task, plan.runs[0].config.model) for plan in plans]
    short = Counter((task, short_name(model)) for task, model in pairs)
    models = [short_name(model) if short[task, short_name(model)] == 1 else model for task, model in pairs]
    return [f"{sharing.name} / {task} / {model} / runs" for (task, _), model in zip(pairs, models)]


def study_name(name: str, seed: int) -> str:
    """The study of a seed of the plan that is called so."""
    return f"{name} / seed {seed}"[-LONGEST_NAME:]


def terms_of(plan: Plan, claim: str) -> dict[str, Any]:
    """What must be equal for two processes to share runs: all that makes a run, but for its seed."""
    first = plan.runs[0].config
    configs = {run.config.method: run.config for run in plan.runs if run.config.seed == first.seed}
    settings = {
        method: {name: value for name, value in config.recorded_settings().items() if value is not None}
        for method, config in configs.items()
    }
    names = dict.fromkeys(name for values in settings.values() for name in values)
    return {
        "claimed": claim,
        "methods": ", ".join(configs),
        **{name: _common(settings, name) for name in names if name not in ("task", "method", "seed")},
        "data fingerprint": plan.task.fingerprint,
    }


def _common(settings: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """The value of a setting, or, where methods differ in it, the value of each method."""
    values = {method: given.get(name) for method, given in settings.items()}
    first = next(iter(values.values()))
    return first if all(value == first for value in values.values()) else values
