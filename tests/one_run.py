"""One training run of a test: its task is loaded once for all tests of the process."""

from __future__ import annotations

from typing import Any

from glora.experiments.config import RunConfig
from glora.experiments.plan import TaskLoader
from glora.experiments.records.schema import RunRecord
from glora.experiments.training import run as training

_load = TaskLoader()


def run(config: RunConfig, **options: Any) -> RunRecord:
    return training.run(config, _load(config), **options)
