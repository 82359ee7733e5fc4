"""Ctrl-C and SIGTERM wait until a measured run is on the disk, and none is lost.

A run is interrupted while it trains. From its last evaluation on, nothing is left to do but to write its record: an interrupt
then takes effect after that, and a second one is not faster. Libraries also swallow an interrupt now and then (`datasets` has
bare `except:` clauses around the fingerprints that Trainer asks for): it takes effect at the next step then.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interrupts:
    """The signals that arrive in a block."""

    def __init__(self) -> None:
        self.held = False
        self.received: list[int] = []
        self._handlers: dict[int, Any] = {}

    def begin(self) -> None:
        if threading.current_thread() is threading.main_thread():  # handlers can be set there alone
            for number in SIGNALS:
                if signal.getsignal(number) is not None:  # a handler that Python did not set cannot be set again
                    self._handlers[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        self.received.append(number)
        if not self.held:
            self.raise_first()

    def raise_first(self) -> None:
        """Let the first signal that was received do what it would have done outside the block."""
        number = self.received[0]
        mine = signal.signal(number, self._handlers[number])
        try:
            signal.raise_signal(number)
        finally:
            signal.signal(number, mine)
        self.received.clear()  # its handler returned: there is nothing to interrupt

    def end(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()


_current: ContextVar[_Interrupts | None] = ContextVar("interrupts", default=None)


@contextlib.contextmanager
def record_before_interrupts() -> Iterator[None]:
    """Have interrupts that arrive after `hold_interrupts` in this block take effect at its end.

    Blocks may be nested: a block inside one that holds interrupts already leaves them to it.
    """
    if (outer := _current.get()) is not None:
        held = outer.held
        try:
            yield
        finally:
            outer.held = held
        raise_swallowed_interrupt()
        return
    interrupts = _Interrupts()
    token = _current.set(interrupts)
    interrupts.begin()
    try:
        yield
    finally:
        _current.reset(token)
        interrupts.end()
    if interrupts.received:
        signal.raise_signal(interrupts.received[0])


def hold_interrupts() -> None:
    """Let interrupts wait from now on, inside a block of `record_before_interrupts`; elsewhere do nothing."""
    if (interrupts := _current.get()) is not None:
        interrupts.held = True


def raise_swallowed_interrupt() -> None:
    """Raise an interrupt of this block of `record_before_interrupts` that did not end it, unless interrupts are held."""
    if (interrupts := _current.get()) is not None and interrupts.received and not interrupts.held:
        interrupts.raise_first()
