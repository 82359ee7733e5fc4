"""Ctrl-C and SIGTERM wait until a measured run is on the disk.

A run is interrupted while it trains. From its last evaluation on, nothing is left to do but to write its record: an interrupt
then takes effect after that, and a second one is no faster.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Waiting:
    """The signals that arrive between `begin` and `end`."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._handlers: dict[int, Any] = {}

    def begin(self) -> None:
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) is not None:  # a handler that Python did not set cannot be set again
                self._handlers[number] = signal.signal(number, lambda received, _: self.received.append(received))

    def end(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


_waiting: ContextVar[_Waiting | None] = ContextVar("waiting", default=None)


@contextlib.contextmanager
def record_before_interrupts() -> Iterator[None]:
    """Have interrupts that arrive after `hold_interrupts` in this block take effect at its end; blocks may be nested."""
    if _waiting.get() is not None:
        yield
        return
    waiting = _Waiting()
    token = _waiting.set(waiting)
    try:
        yield
    finally:
        _waiting.reset(token)
        waiting.end()
    if waiting.received:
        signal.raise_signal(waiting.received[0])


def hold_interrupts() -> None:
    """Let interrupts wait from now on, inside a block of `record_before_interrupts`; elsewhere do nothing."""
    if (waiting := _waiting.get()) is not None:
        waiting.begin()
