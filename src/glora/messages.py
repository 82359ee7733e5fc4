"""Messages: the logger that announces a reallocation, plurals, and the nearest name for a typo.

A library's INFO messages are invisible by default, so users of AdaLoRA often never notice that its ranks do not change. The
logger `glora` therefore writes to stderr until the application configures logging itself;
`logging.getLogger("glora").setLevel(logging.WARNING)` silences it.
"""

from __future__ import annotations

import difflib
import logging
import re
import sys
from collections.abc import Iterable, Sequence


class AboveProgressBars(logging.StreamHandler):  # type: ignore[type-arg]
    """Write each message above tqdm's progress bars, such as Trainer's."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message; tqdm, where it is used, redraws its bars below."""
        if (tqdm := sys.modules.get("tqdm")) is None:
            return super().emit(record)
        try:
            tqdm.tqdm.write(self.format(record), file=self.stream)
        except Exception:
            self.handleError(record)


def _application_is_silent(_record: logging.LogRecord) -> bool:
    return not logging.getLogger().handlers


def is_main_process(_record: logging.LogRecord | None = None) -> bool:
    """Return whether this is process 0, which logs for all processes that train together."""
    distributed = sys.modules.get("torch.distributed")
    return (
        distributed is None
        or not distributed.is_available()
        or not (distributed.is_initialized() and distributed.get_rank() > 0)
    )


def get_logger() -> logging.Logger:
    """Return the logger `glora`, with its handler attached."""
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


PLURALS = {"batch": "batches", "group of examples": "groups of examples", "matrix": "matrices", "study": "studies"}


def pluralize(number: int, noun: str) -> str:
    """Return `1 matrix`, `2 matrices`, `1,200 steps`."""
    return f"{number:,} {noun if number == 1 else PLURALS.get(noun, noun + 's')}"


def shortened(names: Sequence[str], most: int = 6) -> str:
    """Join the first names, and count the others: `a, b and 3 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


SYNONYMS = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "perdevicetrainbatchsize": "batch_size",
    "numepochs": "epochs",
    "numtrainepochs": "epochs",
    "trainingepochs": "epochs",
    "r": "rank",
    "lorarank": "rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "maxseqlength": "max_length",
    "scheduler": "lr_scheduler",
    "lrschedulertype": "lr_scheduler",
    "lrwarmupratio": "lr_warmup",
    "emabeta": "beta",
    "emadecay": "beta",
    "rtotal": "total_rank",
    "rankbudget": "total_rank",
    "targetrank": "average_rank",
    "twarmup": "warmup_steps",
}
"""Names that papers and other tools give to our settings, as `plain` writes them."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'lora'?` for the known names nearest to a typo, or an empty string."""
    by_letters = {one.lower(): one for one in known}
    if (ours := SYNONYMS.get(plain(name))) is not None:
        for one in by_letters.values():
            if plain(one) == plain(ours):
                return f"; did you mean {one!r}?"
    near = difflib.get_close_matches(name.lower(), by_letters, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(by_letters[one]) for one in near)}?" if near else ""


def plain(name: str) -> str:
    """Return a name's letters and digits in lower case, by which names are compared: `GSM-8K` -> `gsm8k`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
