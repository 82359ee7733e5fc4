"""The command line: parse, call, print. Nothing imports it but `glora.__main__` and the installed command.

Heavy imports are inside the commands, so that help comes at once.
"""

from glora.cli import adapters, compress, training  # noqa: F401  the commands register themselves
from glora.cli.application import app, main

__all__ = ["app", "main"]
