"""Comparisons on a tiny model whose runs are made by a stand-in, without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.plan import InvalidComparisonError, Plan, plan_comparison
from glora.experiments.records.provenance import collect_provenance
from glora.experiments.records.schema import RunRecord
from glora.experiments.training.progress import RunProgress


def made_record(config: RunConfig, accuracy: float, **fields: Any) -> RunRecord:
    return RunRecord(
        config=config,
        key=config.key,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00",
        provenance=collect_provenance(),
        **{
            "status": "finished",
            "primary_metric": "accuracy",
            "final": {"accuracy": accuracy},
            "train_seconds": 1.0,
            "steps": 18,
            **fields,
        },
    )


def finished(config: RunConfig) -> RunRecord:
    return made_record(config, 0.5, examples={"train": 192, "validation": 48})


def failed(config: RunConfig) -> RunRecord:
    return finished(config).model_copy(update={"status": "failed", "error": "ValueError: broken on purpose"})


class FakeRuns:
    """Makes runs without training; `broken` says which fail."""

    def __init__(self, broken: Callable[[RunConfig], bool] = lambda _: False) -> None:
        self.made: list[RunConfig] = []
        self._broken = broken

    def __call__(self, config: RunConfig, _task: object = None, *, progress: RunProgress, **_: object) -> RunRecord:
        self.made.append(config)
        record = failed(config) if self._broken(config) else finished(config)
        progress.run_ends(record)
        return record


@pytest.fixture
def plan(tiny_deberta: Path, glue_folder: Path, tmp_path: Path) -> Callable[..., Plan]:
    def make(**arguments: Any) -> Plan:
        settings = {
            "model": str(tiny_deberta),
            "task": "rte",
            "data_dir": str(glue_folder),
            "epochs": 3,
            "max_length": 32,
        }
        output = arguments.pop("output", tmp_path / "out")
        return plan_comparison(output, **{**arguments, "settings": {**settings, **arguments.get("settings", {})}})

    return make


def errors(plan: Callable[..., Plan], **arguments: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidComparisonError) as caught:
        plan(**arguments)
    return caught.value.errors
