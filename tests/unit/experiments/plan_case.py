"""Comparisons on a tiny model whose runs are made by a stand-in, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.plan import InvalidComparisonError, Plan, plan_comparison
from glora.experiments.records.failures import describe_failure
from glora.experiments.records.provenance import collect_provenance
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.training.progress import RunProgress


def made_record(config: RunConfig, accuracy: float, **fields: Any) -> RunRecord:
    return RunRecord(
        config=config,
        key=config.key,
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T00:01:00+00:00",
        **{
            "provenance": collect_provenance(),
            "status": "finished",
            "primary_metric": "accuracy",
            "final": {"accuracy": accuracy},
            "train_seconds": 1.0,
            "steps": 18,
            "examples": {"train": 192, "validation": 48},
            **fields,
        },
    )


def closeness(config: RunConfig) -> float:
    return 1 - abs(config.learning_rate - 1e-3)


def raising(error: BaseException, where: Callable[[RunConfig], bool] = lambda _: True) -> Callable[[RunConfig], float]:
    """An accuracy for `FakeRuns` that raises an error in some runs."""

    def accuracy(config: RunConfig) -> float:
        if where(config):
            raise error
        return closeness(config)

    return accuracy


BROKEN = OSError("broken on purpose")


@dataclass
class FakeRuns:
    """Makes runs without training: `accuracy(config)` after every epoch, a failed run where it raises an exception."""

    accuracy: Callable[[RunConfig], float] = closeness
    epochs: int = 3
    made: list[RunConfig] = field(default_factory=list)

    def __call__(self, config: RunConfig, _task: object = None, *, progress: RunProgress, **_: object) -> RunRecord:
        progress.run_begins(config, 6 * self.epochs)
        try:
            record = made_record(config, self.accuracy(config))
        except Exception as error:
            record = made_record(config, 0.0, status="failed", **describe_failure(error), final={})
        self.made.append(config)
        split = "validation" if config.held_out is None else "tuning"
        for epoch in range(1, self.epochs + 1 if record.final else 1):
            for _ in range(6):
                progress.step()
            values = record.final
            progress.evaluated(EpochMetrics(epoch=epoch, step=6 * epoch, split=split, train_seconds=1.0, values=values))
        progress.run_ends(record)
        return record


def change_weights(model: Path) -> None:
    """Replace the weights in a model's folder by others of the same size."""
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.fixture
def plan(tiny_rte: dict[str, Any], tmp_path: Path) -> Callable[..., Plan]:
    def make(output: Path = tmp_path / "out", settings: Mapping[str, Any] | None = None, **arguments: Any) -> Plan:
        return plan_comparison(output, settings={**tiny_rte, **(settings or {})}, **arguments)

    return make


def errors(plan: Callable[..., object], **arguments: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidComparisonError) as caught:
        plan(**arguments)
    return caught.value.errors
