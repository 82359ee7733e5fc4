"""Describe a failed run: a line for the table, its class, kind and advice, and a traceback without machine paths.

A numerical failure or a bad file is an outcome like any other: it is recorded, and the next run begins.
"""

from __future__ import annotations

import traceback

from glora.experiments.publishing import publishable

MAX_TRACEBACK = 20_000
"""Characters kept of a traceback, from its end, which names the cause."""


def describe_failure(error: BaseException) -> dict[str, str | None]:
    """Return the fields of `RunRecord` that describe an exception: `error`, `exception`, `kind`, `advice` and `traceback`.

    All of them are `publishable`: without this machine's folders and without secrets.

    Args:
        error: the exception that ended the run; the traceback includes the exceptions that caused it. Its attributes
            `kind` and `advice`, if it has them, are recorded.
    """
    name, message, advice = type(error).__name__, str(error).strip(), getattr(error, "advice", None)
    whole = "".join(traceback.format_exception(error))
    return {
        "error": publishable(f"{name}: {message}" if message else name),
        "exception": name,
        "kind": getattr(error, "kind", None),
        "advice": None if advice is None else publishable(advice),
        "traceback": publishable(whole)[-MAX_TRACEBACK:],
    }
