"""Measure what a run costs: seconds of training alone, and peak memory.

Both must be comparable between methods that run one after another in one process. So the clock stops during everything that is
not training (evaluation, reading the norms, drawing the progress bar), and the peak of memory is reset before each run.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

with contextlib.suppress(ModuleNotFoundError):  # on Windows
    import resource

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class TrainingClock:
    """Measure the seconds of training, without what happens inside `paused()`, and of each optimizer step.

    A step's time runs from the end of the previous step (or the start of training) to its own end: it includes loading the
    batch, forward, backward, optimizer and callbacks.

    CUDA is asynchronous, so each reading synchronizes the device. Trainer does that in each step as well (its NaN filter).
    """

    def __init__(self) -> None:
        self._paused_at: float | None = None
        self._paused_seconds = 0.0
        self._started_at = 0.0
        self._last_step_at = 0.0
        self.step_seconds: list[float] = []

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self, already: float = 0.0) -> None:
        """Start at the seconds that have passed already."""
        self._paused_at, self._paused_seconds, self.step_seconds = None, 0.0, []
        self._last_step_at = self._now()
        self._started_at = self._last_step_at - already

    def step(self) -> None:
        """Record the end of an optimizer step."""
        now = self._now() - self._paused_seconds
        self.step_seconds.append(now - self._last_step_at)
        self._last_step_at = now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock. May be nested; the outermost counts."""
        if self._paused_at is not None:
            yield
            return
        self._paused_at = self._now()
        try:
            yield
        finally:
            self._paused_seconds += self._now() - self._paused_at
            self._paused_at = None

    @property
    def seconds(self) -> float:
        """Return the seconds of training since `start`."""
        until = self._now() if self._paused_at is None else self._paused_at
        return until - self._started_at - self._paused_seconds

    @property
    def seconds_per_step(self) -> float | None:
        """Return the median seconds of a step: a single slow step (the first, the reallocation) does not move it."""
        return statistics.median(self.step_seconds) if self.step_seconds else None


class PeakMemory:
    """Measure the peak memory between construction and `read()`.

    On CUDA: `torch.cuda.max_memory_allocated`. Otherwise the resident set of the whole process, libraries included, which is
    only comparable within one comparison. Linux lets a process reset its own peak (proc(5), clear_refs); elsewhere the figure
    is the peak since the process began, and `source` says so.
    """

    def __init__(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.source = "torch.cuda.max_memory_allocated"
            return
        with contextlib.suppress(
            OSError, AttributeError
        ):  # glibc keeps what an earlier run freed: it would be in this peak
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        try:
            _CLEAR_REFS.write_text("5")
            self.source = "peak resident set of the process during the run"
        except OSError:
            self.source = "peak resident set since the process began"

    def read(self) -> int:
        """Return the peak so far, in bytes."""
        if torch.cuda.is_available():
            return int(torch.cuda.max_memory_allocated())
        with contextlib.suppress(OSError):
            peak = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
            if peak:
                return int(peak[1]) * 1024
        maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(maximum if sys.platform == "darwin" else maximum * 1024)
