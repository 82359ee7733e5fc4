"""Show the libraries' messages on the console of the command line: by default only what concerns the user.

transformers, datasets and PEFT warn about many things that are intended here (a new head, no saved checkpoints). One handler
prints all messages, so that they appear above the progress bars.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import torch  # noqa: F401  # which sets the level of its loggers
from rich.console import Console
from transformers.utils import logging as transformers_logging
from typing_extensions import override

LIBRARIES = (
    *("transformers", "datasets", "peft", "accelerate", "torch", "huggingface_hub", "py.warnings"),
    *("bitsandbytes", "torchao"),  # which PEFT imports where they are installed
)


class ConsoleLogHandler(logging.Handler):
    """Print log messages on rich's console, which keeps them apart from its progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    @override
    def emit(self, record: logging.LogRecord) -> None:
        own = record.name.startswith("glora.")
        self._console.print(f"{'glora' if own else record.name}: {self.format(record)}", soft_wrap=True)


@contextlib.contextmanager
def log_messages_on(console: Console, verbosity: int = 0) -> Iterator[None]:
    """Show glora's messages, and the libraries' errors (verbosity 0), warnings (1) or all messages (2), inside the block."""
    level = (logging.ERROR, logging.WARNING, logging.INFO)[min(verbosity, 2)]
    root, handler = logging.getLogger(), ConsoleLogHandler(console)
    set_by_user = os.environ.get("DATASETS_VERBOSITY")
    os.environ["DATASETS_VERBOSITY"] = logging.getLevelName(
        level
    ).lower()  # which it reads if it is imported only later
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    with warnings.catch_warnings():
        if not verbosity:
            warnings.simplefilter("ignore")
        logging.captureWarnings(True)
        transformers_logging.disable_default_handler()
        transformers_logging.enable_propagation()
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(level)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            if set_by_user is None:
                del os.environ["DATASETS_VERBOSITY"]
            else:
                os.environ["DATASETS_VERBOSITY"] = set_by_user
            for name, before in levels.items():
                logging.getLogger(name).setLevel(before)
            transformers_logging.disable_propagation()
            transformers_logging.enable_default_handler()
            logging.captureWarnings(False)
