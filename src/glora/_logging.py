"""The line that a user sees when ranks change.

A library's INFO messages are invisible by default, and a reallocation that nobody hears of is what went wrong with
AdaLoRA. So the logger `glora` writes to stderr by itself, as Optuna's does, until the application configures logging of
its own; `logging.getLogger("glora").setLevel(logging.WARNING)` silences it.
"""

from __future__ import annotations

import logging
import sys


class AboveProgressBars(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes a line of its own, where a bar of tqdm's (Trainer's, for one) may stand in the last line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message; tqdm, if somebody uses it, takes its bars away meanwhile."""
        if (tqdm := sys.modules.get("tqdm")) is None:
            return super().emit(record)
        try:
            tqdm.tqdm.write(self.format(record), file=self.stream)
        except Exception:
            self.handleError(record)


def _application_is_silent(_record: logging.LogRecord) -> bool:
    return not logging.getLogger().handlers


def is_main_process(_record: logging.LogRecord | None = None) -> bool:
    """Of several processes that train together, the first speaks for all."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is None
        or not distributed.is_available()
        or not (distributed.is_initialized() and distributed.get_rank() > 0)
    )


def get_logger() -> logging.Logger:
    """The logger of glora, with its handler in place."""
    logger = logging.getLogger("glora")
    if not logger.handlers:
        logger.addFilter(is_main_process)
        handler = AboveProgressBars()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        handler.addFilter(_application_is_silent)
        logger.addHandler(handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    return logger
