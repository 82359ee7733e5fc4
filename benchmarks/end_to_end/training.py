"""One timed run: the study's training, with the held-out loss measured every few steps while the clock is stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.end_to_end.design import ARMS, RACES, RANK, Entry
from benchmarks.machine_load import OtherProcesses
from benchmarks.study.design import run_of
from benchmarks.study.tasks import HELD_OUT
from benchmarks.study.training import Bench, accelerate
from transformers import TrainerCallback

from glora.experiments.records.provenance import collect_provenance, utc_now
from glora.experiments.training.measurement import PeakMemory
from glora.experiments.training.progress import RunProgress
from glora.experiments.training.timed_trainer import RunRecorder


class Track:
    """A race's task, read once; its runs share the examples."""

    def __init__(self, race: str, data: Path, model: str) -> None:
        self.race, self._every = race, RACES[race].every
        self._bench = Bench(RACES[race].task, data, model, RACES[race].study_task)

    def make(self, entry: Entry) -> dict[str, Any]:
        """Train, and return the run's record."""
        arm = ARMS[entry.arm]
        load = os.getloadavg()[0]
        run = run_of(RACES[self.race].task, arm.trains_as, RANK, entry.learning_rate, entry.seed)
        prepared = self._bench.adapt(run)
        adapted = prepared.adapted
        if arm.accelerated:
            accelerate(adapted)
        recorder = RunRecorder(adapted, HELD_OUT, RunProgress())
        curve = Curve(recorder, self._every, lambda: self._bench.measure(prepared).loss)
        others = OtherProcesses()
        self._bench.train(prepared, recorder, (), curve)
        return {
            "task": self.race,
            **entry._asdict(),
            "parameters": adapted.adapter_parameters(),
            "steps": recorder.steps,
            "curve": curve.points,
            "seconds": round(float(recorder.train_seconds or 0), 3),
            "peak_memory": curve.peak_memory,
            "memory_source": curve.memory_source,
            "load_average_before": round(load, 2),
            "others_during": round(others.cores(), 3),
            "measured_at": utc_now(),
            "provenance": collect_provenance().model_dump(),
        }


class Curve(TrainerCallback):
    """The held-out loss after every few steps, and after the last.

    Attributes:
        points: (step, seconds of training, loss).
        peak_memory: Bytes at the height of the training, without the evaluations.
        memory_source: Measure of that height.
    """

    def __init__(self, recorder: RunRecorder, every: int, measure: Callable[[], float]) -> None:
        self._recorder, self._every, self._measure = recorder, every, measure
        self.points: list[tuple[int, float, float]] = []
        self.peak_memory, self.memory_source = 0, ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to measure the memory."""
        self._memory = PeakMemory()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, where it is time."""
        step = state.global_step
        if step % self._every == 0 or step == state.max_steps:
            with self._recorder.clock.paused():
                self.peak_memory = max(self.peak_memory, self._memory.read())
                self.points.append((step, round(self._recorder.clock.seconds, 4), round(self._measure(), 6)))
                self._memory = PeakMemory()
                self.memory_source = self._memory.source
