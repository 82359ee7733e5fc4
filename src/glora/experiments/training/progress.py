"""What a comparison shows while it runs: bars on a terminal, plain lines anywhere else.

The training code reports events and knows nothing of how they are shown. `open_progress` chooses: rich's bars (all
runs, the steps of the present one, its evaluation, time left) on a terminal; in a log file, lines for what matters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.table import Column
from rich.text import Text
from typing_extensions import Self, override

from glora.messages import pluralize

if TYPE_CHECKING:
    from rich.progress import Task

    from glora.experiments.config import RunConfig
    from glora.experiments.records.schema import EpochMetrics, RunRecord


WIDE = 100
"""Columns of a terminal in which long bars leave room for the rest."""


class RunStopped(Exception):  # noqa: N818  (it is no error)
    """Raised by what is told how far a run is, to end the run; it leaves no record."""


class RunProgress:
    """The events of a comparison, in the order in which they come. This class shows none of them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, runs: int, steps: int, *, noun: str = "run") -> None:
        """So many runs are to be made, with so many optimiser steps together; a search calls them trials."""

    def left(self, runs: int) -> None:
        """So many are left: other processes make some of them."""

    def waiting(self, message: str) -> None:
        """Nothing is left to do here, but other processes may need help yet."""

    def run_begins(self, config: RunConfig, steps: int, *, name: str | None = None) -> None:
        """A run of so many steps begins, by loading its model."""

    def preparing(self, what: str, how_far: str = "") -> None:
        """The run's method is at this, before the first step; told again as it gets on."""

    def step(self) -> None:
        """An optimiser step has been made."""

    def evaluation_begins(self, split: str, batches: int) -> None:
        """A split of so many batches is being evaluated."""

    def evaluation_batch(self) -> None:
        """A batch has been evaluated."""

    def evaluated(self, metrics: EpochMetrics) -> None:
        """The evaluation of a split has ended."""

    def run_ends(self, record: RunRecord) -> None:
        """A run has ended, well or not."""
        self.run_over(outcome(record), record.steps or 0)

    def run_over(self, message: str, steps: int) -> None:
        """A run has ended after so many steps, and this is to be said of it."""

    def say(self, message: str) -> None:
        """A line for the user, such as how the ranks were reallocated."""


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
    """Three bars: the steps of all runs, of this run, and the batches of its evaluation."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(min_width=21)),  # so that nothing jumps when bars come
            BarColumn(bar_width=20 if console.width >= WIDE else 8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _TimeLeft(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            refresh_per_second=4,  # drawing takes processor time from the training that is being measured
            transient=True,
        )
        self._runs = self._done = self._run_steps = 0
        self._steps_a_run, self._noun = 0.0, "run"
        self._prepares = False
        self._everything: TaskID | None = None
        self._run: TaskID | None = None
        self._evaluation: TaskID | None = None

    @override
    def __enter__(self) -> Self:
        self._bars.start()
        return self

    @override
    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @override
    def begin(self, runs: int, steps: int, *, noun: str = "run") -> None:
        self._remove(self._everything)
        self._runs, self._done, self._noun, self._steps_a_run = runs, 0, noun, steps / max(1, runs)
        self._everything = self._bars.add_task(self._title(), total=steps, unit="steps", timed=True, note="")

    def _title(self) -> str:
        return f"[bold]{self._noun} {min(self._done + 1, self._runs)} of {self._runs}"

    @override
    def left(self, runs: int) -> None:
        self._done = self._runs - runs
        if self._everything is not None:
            self._bars.update(
                self._everything, description=self._title(), completed=round(self._done * self._steps_a_run)
            )

    @override
    def run_begins(self, config: RunConfig, steps: int, *, name: str | None = None) -> None:
        self._run_steps, self._prepares = steps, False
        self._run = self._bars.add_task(escape(name or _name(config)), total=steps, unit="steps", timed=True, note="")

    @override
    def preparing(self, what: str, how_far: str = "") -> None:
        self._prepares = True
        if self._run is not None:
            self._bars.update(self._run, note=escape(f"{what}, {how_far}" if how_far else what))

    @override
    def step(self) -> None:
        if self._prepares and self._run is not None:
            self._bars.update(self._run, note="")
        self._prepares = False
        for task in (self._everything, self._run):
            if task is not None:
                self._bars.advance(task)

    @override
    def evaluation_begins(self, split: str, batches: int) -> None:
        self._evaluation = self._bars.add_task(f"evaluating {escape(split)}", total=batches, unit="batches", note="")

    @override
    def evaluation_batch(self) -> None:
        if self._evaluation is not None:
            self._bars.advance(self._evaluation)

    @override
    def evaluated(self, metrics: EpochMetrics) -> None:
        self._remove(self._evaluation)
        self._evaluation = None
        if self._run is not None:
            name, value = next(iter(metrics.values.items()))
            self._bars.update(self._run, note=f"{value:.3f} {escape(name)}")  # where it is cut, the number stays

    @override
    def waiting(self, message: str) -> None:
        if self._everything is not None:
            self._bars.update(self._everything, description="[bold]waiting", note=escape(message))

    @override
    def run_over(self, message: str, steps: int) -> None:
        self._remove(self._evaluation)
        self._remove(self._run)
        self._run = self._evaluation = None
        self._done += 1
        if self._everything is not None:
            self._bars.update(self._everything, description=self._title(), advance=self._run_steps - steps)
        self.say(message)

    @override
    def say(self, message: str) -> None:
        self._bars.console.print(escape(message), highlight=False, soft_wrap=True)

    def _remove(self, task: TaskID | None) -> None:
        if task is not None:
            self._bars.remove_task(task)


class LineProgress(RunProgress):
    """Lines for a log: the beginning and end of each run, and each evaluation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._runs = self._done = 0
        self._steps = self._all_steps = self._all_done = 0
        self._began = 0.0
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
        self._steps, self._prepares = 0, ""
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

    @override
    def evaluated(self, metrics: EpochMetrics) -> None:
        spent = time.monotonic() - self._began
        left = spent / max(1, self._all_done) * max(0, self._all_steps - self._all_done)
        self.say(
            f"[{self._done + 1}/{self._runs}] epoch {metrics.epoch:.3g}, step {metrics.step}, {metrics.split}: "
            f"{_values(metrics.values)} ({metrics.train_seconds:.0f} s of training; about {duration(left)} left in all)"
        )

    @override
    def run_over(self, message: str, steps: int) -> None:
        self._done += 1
        self.say(f"[{self._done}/{self._runs}] {message}")

    @override
    def say(self, message: str) -> None:
        self._console.print(escape(message), highlight=False, soft_wrap=True)


def open_progress(console: Console) -> RunProgress:
    """Bars if the console is a terminal that can redraw them, lines otherwise."""
    return BarProgress(console) if console.is_terminal and not console.is_dumb_terminal else LineProgress(console)


def outcome(record: RunRecord) -> str:
    """One line on how a run ended."""
    if record.status == "failed":
        return f"{_name(record.config)} failed: {record.failure}"
    best = f"{record.primary_metric} {record.final[record.primary_metric]:.4f}" if record.primary_metric else ""
    return f"{_name(record.config)}: {best} after {duration(record.train_seconds or 0)} of training"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _name(config: RunConfig) -> str:
    return f"{config.method}, seed {config.seed}"


def _values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
