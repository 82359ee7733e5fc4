"""Progress of the runs: bars on a terminal, plain lines in a log.

Training reports events and does not know how they are shown; `open_progress` chooses.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
)
from rich.table import Column
from rich.text import Text
from typing_extensions import Self, override

from glora.experiments.config import RunConfig
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.messages import pluralize

WIDE = 100
"""Columns of a terminal in which long bars leave room for the rest."""
SILENCE = 60.0
"""Seconds after which a log shows that a run is alive."""


class RunStopped(Exception):  # noqa: N818  (it is not an error)
    """Raised by a `RunProgress` to end the run; the run leaves no record."""


class RunProgress:
    """The events of runs, in their order. This class shows none of them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, runs: int, steps: int, *, noun: str = "run") -> None:
        """The number of runs to make, and of their optimizer steps; a search calls its runs trials."""

    def left(self, runs: int) -> None:
        """The number of runs left; other processes make some of them."""

    def waiting(self, message: str) -> None:
        """Nothing is left to do here, but other processes are still working."""

    def run_begins(self, config: RunConfig, steps: int, *, name: str | None = None) -> None:
        """A run begins, by loading its model."""

    def preparing(self, what: str, how_far: str = "") -> None:
        """The method prepares the first step; reported again as it proceeds."""

    def step(self) -> None:
        """An optimizer step has ended."""

    def evaluation_begins(self, split: str, batches: int) -> None:
        """The evaluation of a split begins."""

    def evaluation_batch(self) -> None:
        """A batch of the evaluation has ended."""

    def evaluated(self, metrics: EpochMetrics) -> None:
        """The evaluation of a split has ended."""

    def run_ends(self, record: RunRecord) -> None:
        """A run has ended, finished or failed."""
        self.show_outcome(outcome(record), record.steps or 0)

    def show_outcome(self, message: str, steps: int) -> None:
        """A run has ended after this many steps, with this message."""

    def say(self, message: str) -> None:
        """A line for the user, such as a reallocation."""


class _TimeLeft(ProgressColumn):
    """Time left at the pace so far, evaluation and loading included; rich's own column looks at the last 30 s."""

    @override
    def render(self, task: Task) -> Text:
        if not task.total or not task.completed or task.elapsed is None or not task.fields.get("timed"):
            return Text("")
        if task.completed >= task.total:
            return Text(f"took {duration(task.elapsed)}", style="progress.elapsed")
        left = task.elapsed / task.completed * (task.total - task.completed)
        return Text(f"{duration(left)} left", style="progress.remaining")


class BarProgress(RunProgress):
    """Three bars: the steps of all runs, the steps of this run, and the batches of its evaluation."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn(
                "{task.description}", markup=False, table_column=Column(min_width=21)
            ),  # nothing jumps when bars come
            BarColumn(bar_width=20 if console.width >= WIDE else 8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            _TimeLeft(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            refresh_per_second=4,  # drawing takes processor time from the training that is being measured
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._runs = self._done = self._run_steps = 0
        self._steps_a_run, self._noun = 0.0, "run"
        self._prepares = False

    @override
    def __enter__(self) -> Self:
        self._bars.start()
        return self

    @override
    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def _add(self, bar: str, description: str, total: int, unit: str, *, timed: bool = True) -> None:
        self._remove(bar)
        self._tasks[bar] = self._bars.add_task(description, total=total, unit=unit, timed=timed, note="")

    def _update(self, bar: str, **fields: Any) -> None:
        if bar in self._tasks:
            self._bars.update(self._tasks[bar], **fields)

    def _remove(self, *bars: str) -> None:
        for bar in bars:
            if bar in self._tasks:
                self._bars.remove_task(self._tasks.pop(bar))

    def _title(self) -> str:
        return f"{self._noun} {min(self._done + 1, self._runs)} of {self._runs}"

    @override
    def begin(self, runs: int, steps: int, *, noun: str = "run") -> None:
        self._runs, self._done, self._noun, self._steps_a_run = runs, 0, noun, steps / max(1, runs)
        self._add("all", self._title(), steps, "steps")

    @override
    def left(self, runs: int) -> None:
        self._done = self._runs - runs
        self._update("all", description=self._title(), completed=round(self._done * self._steps_a_run))

    @override
    def waiting(self, message: str) -> None:
        self._update("all", description="waiting", note=message)

    @override
    def run_begins(self, config: RunConfig, steps: int, *, name: str | None = None) -> None:
        self._run_steps, self._prepares = steps, False
        self._add("run", name or _name(config), steps, "steps")

    @override
    def preparing(self, what: str, how_far: str = "") -> None:
        self._prepares = True
        self._update("run", note=f"{what}, {how_far}" if how_far else what)

    @override
    def step(self) -> None:
        if self._prepares:
            self._update("run", note="")
        self._prepares = False
        self._update("all", advance=1)
        self._update("run", advance=1)

    @override
    def evaluation_begins(self, split: str, batches: int) -> None:
        self._add("evaluation", f"evaluating {split}", batches, "batches", timed=False)

    @override
    def evaluation_batch(self) -> None:
        self._update("evaluation", advance=1)

    @override
    def evaluated(self, metrics: EpochMetrics) -> None:
        self._remove("evaluation")
        name, value = next(iter(metrics.values.items()))
        self._update("run", note=f"{value:.3f} {name}")  # where it is cut, the number stays

    @override
    def show_outcome(self, message: str, steps: int) -> None:
        self._remove("evaluation", "run")
        self._done += 1
        self._update("all", description=self._title(), advance=self._run_steps - steps)
        self.say(message)

    @override
    def say(self, message: str) -> None:
        self._bars.console.print(message, soft_wrap=True)


class LineProgress(RunProgress):
    """Lines for a log: the beginning and the end of each run, each evaluation, and a sign of life after a silent minute."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._runs = self._done = 0
        self._steps = self._run_steps = self._all_steps = self._all_done = 0
        self._batch = self._batches = 0
        self._split = ""
        self._began = self._said = 0.0
        self._waiting_for = self._prepares = ""

    @override
    def waiting(self, message: str) -> None:
        if message != self._waiting_for:
            self.say(message)
        self._waiting_for = message

    @override
    def begin(self, runs: int, steps: int, *, noun: str = "run") -> None:
        self._runs, self._done, self._all_steps, self._all_done = runs, 0, steps, 0
        self._began = time.monotonic()

    @override
    def left(self, runs: int) -> None:
        self._done = self._runs - runs
        self._all_done = round(self._done * self._all_steps / max(1, self._runs))

    @override
    def run_begins(self, config: RunConfig, steps: int, *, name: str | None = None) -> None:
        self._steps, self._run_steps, self._prepares = 0, steps, ""
        self.say(f"[{self._done + 1}/{self._runs}] {name or _name(config)}: {pluralize(steps, 'step')}")

    @override
    def preparing(self, what: str, how_far: str = "") -> None:
        if what != self._prepares:
            self.say(f"[{self._done + 1}/{self._runs}] before the first step: {what}")
        self._prepares = what

    @override
    def step(self) -> None:
        self._steps += 1
        self._all_done += 1
        self._sign_of_life(f"step {self._steps:,} of {self._run_steps:,} (about {self._time_left()} left in all)")

    @override
    def evaluation_begins(self, split: str, batches: int) -> None:
        self._split, self._batch, self._batches = split, 0, batches

    @override
    def evaluation_batch(self) -> None:
        self._batch += 1
        self._sign_of_life(f"{self._split}: batch {self._batch:,} of {self._batches:,}")

    def _sign_of_life(self, how_far: str) -> None:
        if time.monotonic() - self._said > SILENCE:
            self.say(f"[{self._done + 1}/{self._runs}] {how_far}")

    def _time_left(self) -> str:
        spent = time.monotonic() - self._began
        return duration(spent / max(1, self._all_done) * max(0, self._all_steps - self._all_done))

    @override
    def evaluated(self, metrics: EpochMetrics) -> None:
        values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.values.items())
        self.say(
            f"[{self._done + 1}/{self._runs}] epoch {metrics.epoch:.3g}, step {metrics.step}, {metrics.split}: {values} "
            f"({metrics.train_seconds:.0f} s of training; about {self._time_left()} left in all)"
        )

    @override
    def show_outcome(self, message: str, steps: int) -> None:
        self._done += 1
        self.say(f"[{self._done}/{self._runs}] {message}")

    @override
    def say(self, message: str) -> None:
        self._said = time.monotonic()
        self._console.print(message, soft_wrap=True)


def open_progress(console: Console) -> RunProgress:
    """Return bars if the console is a terminal that can redraw them, else lines."""
    return BarProgress(console) if console.is_terminal and not console.is_dumb_terminal else LineProgress(console)


def outcome(record: RunRecord) -> str:
    """Return one line about how a run ended."""
    if record.status == "failed":
        return f"{_name(record.config)} failed: {record.failure}"
    best = f"{record.primary_metric} {record.final[record.primary_metric]:.4f}" if record.primary_metric else ""
    return f"{_name(record.config)}: {best} after {duration(record.train_seconds or 0)} of training"


def duration(seconds: float) -> str:
    """Return seconds in words: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _name(config: RunConfig) -> str:
    return f"{config.method}, seed {config.seed}"
