"""What the libraries have to say, on the console of the command line: by default only what concerns the user.

transformers, datasets and PEFT warn about many things that are meant to be so here (a new head, no saved checkpoints).
All messages go through one handler, so that they appear above the progress bars and not in the middle of them.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

from rich.markup import escape
from typing_extensions import override

if TYPE_CHECKING:
    from rich.console import Console

LIBRARIES = ("transformers", "datasets", "peft", "accelerate", "torch", "huggingface_hub", "py.warnings")


class ConsoleLogHandler(logging.Handler):
    """Prints log messages on rich's console, which keeps them apart from what it draws."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(escape(f"{record.name}: {self.format(record)}"), highlight=False, soft_wrap=True)


def show_log_messages(console: Console, verbosity: int = 0) -> None:
    """Show what glora has to say, and of the libraries their errors (0), their warnings (1) or all (2)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or it warns whenever a subprocess is started later
    level = (logging.ERROR, logging.WARNING, logging.INFO)[min(verbosity, 2)]
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, ConsoleLogHandler)]:
        root.removeHandler(handler)
    root.addHandler(ConsoleLogHandler(console))

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(level)
    logging.captureWarnings(True)
    if not verbosity:
        warnings.simplefilter("ignore")
