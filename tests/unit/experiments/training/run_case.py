"""One run on a tiny DeBERTa and GLUE files, of 12 to 18 steps."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.methods.registry import METHODS
from glora.experiments.records.schema import RunRecord
from one_run import run


@pytest.fixture
def config(tiny_deberta: Path, glue_folder: Path) -> RunConfig:
    return RunConfig(
        model=str(tiny_deberta),
        task="rte",
        data_dir=str(glue_folder),
        method="lora",
        rank=4,
        batch_size=32,
        epochs=3,
        learning_rate=5e-3,
        max_length=32,
    )


def of(config: RunConfig, method: str, **changes: Any) -> RunConfig:
    return METHODS[method].normalise(config.model_copy(update=changes), changes.get("seed", config.seed))


def ok(record: RunRecord) -> RunRecord:
    assert record.status == "finished", record.traceback
    return record


@functools.lru_cache
def record_of(config: RunConfig) -> RunRecord:
    """One run, kept for the tests that only look at what it left."""
    return ok(run(config))


def measured(record: RunRecord) -> dict[str, Any]:
    """A run's results, without those that depend on the clock or on the checkout."""
    timed = {"started_at", "finished_at", "train_seconds", "seconds_per_step", "peak_memory_bytes", "metrics"}
    kept = record.model_dump(exclude={*timed, "provenance"})
    kept["fingerprint"] = record.provenance.data_fingerprint
    kept["metrics"] = [(m.epoch, m.step, m.split, m.train_loss, m.values) for m in record.metrics]
    return kept
