"""A search on a tiny model, planned in a folder, with a storage and runs that are made without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.config import SearchOptions
from glora.experiments.search.plan import SearchPlan, plan_search
from glora.experiments.search.ranges import parse_range
from glora.experiments.search.storage import SharedStorage
from glora.experiments.search.trials import StudyOutcome, run_trials
from glora.experiments.training.progress import RunProgress
from unit.experiments.plan_case import FakeRuns
from unit.experiments.search.search_case import LOOK, quick_storage

RANGES = {"learning_rate": "1e-4-1e-2", "beta": "0.8-0.99"}


@pytest.fixture
def storage(tmp_path: Path) -> SharedStorage:
    return quick_storage(tmp_path)


@pytest.fixture
def plan(tiny_rte: dict[str, Any], tmp_path: Path) -> Callable[..., SearchPlan]:
    def make(*, ranges: dict[str, str] = RANGES, output: Path = tmp_path / "out", **changes: Any) -> SearchPlan:
        options = {name: changes.pop(name) for name in ("trials", "held_out", "seed") if name in changes}
        if changes.get("methods") == ("lora",):
            ranges = {name: text for name, text in ranges.items() if name != "beta"}
        return plan_search(
            output,
            "a search",
            options=SearchOptions(**{"trials": 4, **options}),
            **{
                "methods": ("lora", "glora"),
                "seeds": (0, 1),
                "ranges": [parse_range(name, text) for name, text in ranges.items()],
                "pairs": [{**tiny_rte, "rank": 4, **changes.pop("settings", {})}],
                **changes,
            },
        )

    return make


def search(plan: SearchPlan, storage: SharedStorage, runs: Any = None) -> tuple[StudyOutcome, ...]:
    return run_trials(plan, storage, RunProgress(), make_run=runs or FakeRuns(), look_after=LOOK)
