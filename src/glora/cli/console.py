"""The terminal: errors as one message, Ctrl-C and SIGTERM with a line that says how to continue."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from glora.experiments.terminal import Terminal


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends before it takes the machine back. All that Ctrl-C frees is freed."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return 128 + the signal's number, as shells do."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM inside the block, unless the signal is ignored or handled already."""

    def terminate(*_: Any) -> NoReturn:
        raise Terminated

    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def open_console(*, stderr: bool = False) -> Terminal:
    """Return the terminal, or the file that the stream goes to."""
    from glora.experiments.terminal import Terminal

    return Terminal(stderr=stderr)


def print_error(error: Exception) -> None:
    """Print one message on stderr, with what helps to continue."""
    console = open_console(stderr=True)
    console.print("error:", style="bold red", end=" ")
    console.print(str(error).strip() or type(error).__name__, style="red", soft_wrap=True)
    if unwritten := getattr(error, "unwritten", None):  # the record of a run that could not be written anywhere
        print(unwritten)
    if isinstance(error, ModuleNotFoundError):
        console.print("pip install 'glora[experiments]' brings what experiments need", style="dim")
    if type(error) in (ValueError, ImportError, OSError):  # may be a bug in glora
        console.print("(--debug shows where this comes from)", style="dim")


@contextlib.contextmanager
def running(console: Terminal, output: Path, verbosity: int, kept: str = "runs") -> Iterator[None]:
    """Show log messages on the console; end Ctrl-C and SIGTERM with a line that says how to continue."""
    try:
        from glora.cli.library_messages import log_messages_on

        with log_messages_on(console, verbosity):
            yield
    except KeyboardInterrupt as interrupt:
        how = "Terminated" if isinstance(interrupt, Terminated) else "Interrupted"
        rest = f"Finished {kept} are kept in {output}; the same command goes on with the rest."
        console.print(f"\n{how}. {rest}", soft_wrap=True)
        sys.exit(exit_code(interrupt))
