"""What the command line says beside its results: an error in one message, and how to go on after Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def open_console() -> Console:
    """The terminal, or the file that stdout goes to."""
    from rich.console import Console

    return Console()


def print_error(error: Exception) -> None:
    """One message on stderr, with what helps to go on."""
    from rich.console import Console

    console = Console(stderr=True)
    console.print("[bold red]error:[/]", end=" ")
    console.print(
        str(error).strip() or type(error).__name__, markup=False, highlight=False, style="red", soft_wrap=True
    )
    if unwritten := getattr(error, "unwritten", None):  # the record of a run that could be kept nowhere
        typer.echo(unwritten)
    if isinstance(error, ModuleNotFoundError):
        console.print("pip install 'glora[experiments]' brings what experiments need", style="dim")
    if type(error) in (ValueError, ImportError, OSError):  # not one of our own: it may be a fault of the program
        console.print("(--debug shows where this comes from)", style="dim")


@contextlib.contextmanager
def running(console: Console, output: Path, verbosity: int, kept: str = "runs") -> Iterator[None]:
    """Messages on the console; Ctrl-C ends with a line that says how to go on."""
    try:
        from glora.experiments.training.library_messages import log_messages_on

        with log_messages_on(console, verbosity):
            yield
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. Finished {kept} are kept in {output}; the same command goes on with the rest.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
