"""Cores that other processes keep busy. The load average would also count this process's own last minute."""

from __future__ import annotations

import time

import psutil

QUIET = 0.5
"""Cores that others may use while something is timed."""


class OtherProcesses:
    """Measures them from its construction on."""

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return time.monotonic(), sum(times) - idle - time.process_time()

    def cores(self) -> float:
        """Return the cores that they have kept busy on average."""
        now, busy = self._read()
        return max(0.0, (busy - self._start[1]) / (now - self._start[0]))


def wait_until_quiet(limit: float = QUIET, seconds: float = 3.0) -> float:
    """Wait until others use fewer cores than this, and return how many they use."""
    waiting = False
    while True:
        others = OtherProcesses()
        time.sleep(seconds)
        if (cores := others.cores()) < limit:
            return cores
        if not waiting:
            print(f"waiting: other processes use {cores:.1f} cores, the limit is {limit:g}", flush=True)
        waiting = True
