"""The study's task on a few sentence pairs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def study_task(glue_folder: Path) -> Any:
    from benchmarks.study.tasks import HELD_OUT, SELECTION, StudyTask, measure_labels

    from glora.experiments.data.loading import load_task
    from glora.experiments.training.classification import Classification

    def read_rte(_data: Path) -> Any:
        task = load_task("rte", data_dir=str(glue_folder), train_limit=32)
        (split,) = task.evaluation.values()
        evaluation = {SELECTION: split.select(range(24)), HELD_OUT: split.select(range(24, 48))}
        return dataclasses.replace(task, evaluation=evaluation)

    return StudyTask({"batch_size": 8, "epochs": 2, "max_length": 32}, Classification(), read_rte, measure_labels)
