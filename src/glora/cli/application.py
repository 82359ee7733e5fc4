"""The application that the commands register with, and its entry point."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence

try:
    from cyclopts import App, CycloptsError, Parameter
except ModuleNotFoundError as error:  # the core does not need cyclopts, but the command is installed with it
    raise SystemExit(f"glora's command line needs {error.name}: pip install 'glora[experiments]'") from error

from glora._version import __version__
from glora.cli.console import exit_code, print_error, sigterm_as_interrupt
from glora.cli.options import UsageError
from glora.messages import did_you_mean

app = App(
    name="glora",
    help="GLoRA: LoRA adapters of the size you want, with ranks where they are needed, and PEFT methods compared honestly.",
    help_epilogue="Example: glora compare --output results",
    help_flags=("--help", "-h"),
    help_format="plaintext",
    version=f"glora {__version__}",
    default_parameter=Parameter(negative="", allow_repeating=True),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command()


def main() -> None:
    """Run the command line. A user's mistake becomes one message and exit code 2, without a traceback."""
    arguments = sys.argv[1:]
    try:
        _check_none_is_empty(arguments)
        with sigterm_as_interrupt():
            app(arguments)
    except KeyboardInterrupt as interrupt:
        sys.exit(exit_code(interrupt))
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError, CycloptsError) as error:
        if "--debug" in arguments:
            raise
        unknown = _unknown_options(arguments) if isinstance(error, CycloptsError) else []
        print_error(UsageError("\n".join(unknown)) if unknown else error)
        sys.exit(2)
    sys.exit(0)


def _check_none_is_empty(arguments: Sequence[str]) -> None:
    """Check that every argument has a text; an unset variable of the shell leaves none, and a path would be the present folder.

    Raises:
        UsageError: there is one.
    """
    for before, argument in zip(("", *arguments), arguments):
        option, equals, value = argument.partition("=") if argument.startswith("-") else (before, "", argument)
        if not value.strip() and (equals or not argument.strip()):
            name = option if option.startswith("-") else "an argument"
            raise UsageError(f"{name} is empty; give a value, or leave it out")


def _unknown_options(arguments: Sequence[str]) -> list[str]:
    """Return the options that the command does not have, with the nearest that it has.

    They are reported before all else: a misspelled option is why a required one seems to be missing.
    """
    _, commands, tokens = app.parse_commands(list(itertools.takewhile("--".__ne__, arguments)))
    if len(commands) == 1:
        return []
    known = {name for argument in commands[-1].assemble_argument_collection() for name in argument.names}
    known |= {"--help", "--version"}
    given = dict.fromkeys(token.partition("=")[0] for token in tokens if token.startswith("--"))
    return [f"unknown option {name}{did_you_mean(name, known)}" for name in given if name not in known]
