"""The application that the commands register with, and its entry point."""

from __future__ import annotations

import sys

try:
    from cyclopts import App, CycloptsError, Parameter
except ModuleNotFoundError as error:  # the core does not need cyclopts, but the command is installed with it
    raise SystemExit(f"glora's command line needs {error.name}: pip install 'glora[experiments]'") from error

from glora._version import __version__
from glora.cli.console import print_error

app = App(
    name="glora",
    help="GLoRA: gradient-norm aware rank allocation for LoRA. The right rank in every weight matrix, at LoRA's cost.",
    help_epilogue="Example: glora compare --output results",
    help_flags=("--help", "-h"),
    help_format="plaintext",
    version=f"glora {__version__}",
    default_parameter=Parameter(negative="", allow_repeating=True),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
app.register_install_completion_command()


def main() -> None:
    """Run the command line. A user's mistake becomes one message and exit code 2, without a traceback."""
    try:
        app(sys.argv[1:])
    except (ValueError, OSError, ImportError, CycloptsError) as error:
        if "--debug" in sys.argv:
            raise
        print_error(error)
        sys.exit(2)
    sys.exit(0)
