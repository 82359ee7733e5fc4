"""The arms, the tasks and the order of the runs.

The arms and their learning rates are the study's. Each arm's rate is chosen on a seed that no comparison uses; an accelerated
arm trains as its plain one does, and has its rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.study import design, tasks
from benchmarks.study.tasks import HELD_OUT, StudyTask

from glora.experiments.data.task import TaskData

RANK = 8.0
"""r̄: LoRA's rank, and the average rank after the cut."""


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        label: Its name in tables.
        trains_as: The study's arm.
        accelerated: Whether `accelerate_lora` is called.
    """

    label: str
    trains_as: str
    accelerated: bool = False


ARMS = {
    "uniform": Arm("uniform LoRA", "uniform"),
    "adalora": Arm("AdaLoRA", "adalora"),
    "spectrum": Arm("spectrum, from 4r̄", "spectrum"),
    "uniform_accelerated": Arm("uniform LoRA, accelerated", "uniform", accelerated=True),
    "spectrum_accelerated": Arm("spectrum, from 4r̄, accelerated", "spectrum", accelerated=True),
}


@dataclass(frozen=True)
class Race:
    """A task, small enough to be timed.

    Attributes:
        task: The study's task.
        train, held_out: Numbers of examples.
        every: Steps between two evaluations.
        seeds: The seeds that are compared.
        settings: Settings of a run that differ from the study's.
    """

    task: str
    train: int
    held_out: int
    every: int
    seeds: tuple[int, ...]
    settings: dict[str, Any]

    @property
    def study_task(self) -> StudyTask:
        """The study's task with fewer examples; its selection split is left out."""
        whole = tasks.TASKS[self.task]

        def read(data: Path) -> TaskData:
            found = whole.read(data)
            rows = found.evaluation[HELD_OUT]  # in the order of their length
            places = [i * len(rows) // self.held_out for i in range(self.held_out)]
            train = found.train.select(range(self.train))
            return dataclasses.replace(found, train=train, evaluation={HELD_OUT: rows.select(places)})

        return dataclasses.replace(whole, settings={**whole.settings, **self.settings}, read=read)


RACES = {
    "sst2": Race("sst2", 3200, 640, 25, tuple(range(5)), {"epochs": 1}),
    "gsm8k": Race("gsm8k", 200, 32, 10, tuple(range(3)), {"max_length": 256}),
    "gsm8k-gpu": Race("gsm8k", 640, 200, 5, tuple(range(3)), {"batch_size": 32, "epochs": 2, "precision": "bfloat16"}),
}


class Entry(NamedTuple):
    """A run: an arm at a learning rate on a seed."""

    arm: str
    learning_rate: float
    seed: int


def entries(race: str, best: Callable[[str], float | None]) -> Iterator[Entry]:
    """Yield the runs of a race: the tuning, then seed by seed all arms, so that what is there is balanced.

    Args:
        race: Its name in RACES.
        best: Arm -> the learning rate that tuning chose; None while a run of the tuning is missing.
    """
    task = RACES[race].task
    for name, arm in ARMS.items():
        for factor in () if arm.accelerated else design.ARMS[arm.trains_as].rates:
            yield Entry(name, factor * design.TASKS[task].learning_rate, design.TUNING_SEED)
    for seed in RACES[race].seeds:
        for name, arm in ARMS.items():
            if (rate := best(arm.trains_as)) is not None:
                yield Entry(name, rate, seed)
