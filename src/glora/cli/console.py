"""The terminal: errors as one message, Ctrl-C with a line that says how to continue."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def open_console(*, stderr: bool = False) -> Console:
    """Return the terminal, or the file that the stream goes to."""
    from rich.console import Console

    return Console(stderr=stderr)


def print_path(console: Console, text: str, style: str | None = None) -> None:
    """Print text with a path in it: neither markup nor cut at the terminal's width."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_error(error: Exception) -> None:
    """Print one message on stderr, with what helps to continue."""
    console = open_console(stderr=True)
    console.print("[bold red]error:[/]", end=" ")
    print_path(console, str(error).strip() or type(error).__name__, style="red")
    if unwritten := getattr(error, "unwritten", None):  # the record of a run that could not be written anywhere
        print(unwritten)
    if isinstance(error, ModuleNotFoundError):
        console.print("pip install 'glora[experiments]' brings what experiments need", style="dim")
    if type(error) in (ValueError, ImportError, OSError):  # not one of our own: it may be a fault of the program
        console.print("(--debug shows where this comes from)", style="dim")


@contextlib.contextmanager
def running(console: Console, output: Path, verbosity: int, kept: str = "runs") -> Iterator[None]:
    """Show log messages on the console; end Ctrl-C with a line that says how to continue."""
    try:
        from glora.experiments.training.library_messages import log_messages_on

        with log_messages_on(console, verbosity):
            yield
    except KeyboardInterrupt:
        print_path(
            console, f"\nInterrupted. Finished {kept} are kept in {output}; the same command goes on with the rest."
        )
        sys.exit(INTERRUPTED)
