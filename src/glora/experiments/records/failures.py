"""How a broken run is recorded: a line for the table, a traceback for whoever mends it, and no machine paths.

A numerical failure or a bad file is an outcome of an experiment like another; the comparison writes it down
and goes on with the next run.
"""

from __future__ import annotations

import re
import sysconfig
import tempfile
import traceback
from pathlib import Path

import glora

LONGEST_TRACEBACK = 20_000
"""Characters that are kept of a traceback, from its end, where the cause stands."""

ELSEWHERE = re.compile(r"(?<![\w.:/\\~>\-])/(?:[\w.\-+@]+/)+(?=[\w.\-+@])")
"""The folders of an absolute path that is under none of the folders known by name; a URL is not matched."""


DIVERGED = ("DivergedError", "BrokenPredictionsError")
"""Types of the exceptions that end a run whose numbers have become NaN or infinite."""


def has_diverged(error: str) -> bool:
    """Whether `RunRecord.error` says that training has diverged, which other settings may prevent."""
    return error.split(":", 1)[0] in DIVERGED


def cannot_load_model(error: str) -> bool:
    """Whether `RunRecord.error` says that the run had no model, as no run of the same model will have."""
    return error.split(":", 1)[0] == "ModelNotFoundError"


def describe_failure(error: BaseException) -> tuple[str, str]:
    """What `RunRecord.error` and `RunRecord.traceback` say about an exception.

    Args:
        error: the exception that ended the run; exceptions it was raised from are part of the traceback.

    Returns:
        `"ExceptionType: message"` and the traceback. In both, folders that are particular to this machine
        (packages, the working folder, the home folder) are cut off or replaced by `.` and `~`.
    """
    message = str(error).strip()
    line = f"{type(error).__name__}: {message}" if message else type(error).__name__
    whole = "".join(traceback.format_exception(error))
    return _publishable(line), _publishable(whole)[-LONGEST_TRACEBACK:]


def _publishable(text: str) -> str:
    """The text without this machine's folders, and without characters that UTF-8 cannot hold."""
    for folder, replacement in _machine_folders():
        # Only where a path begins and the name ends: /home/me is in neither /home/mel nor /x/home/me.
        folder_itself = rf"(?<![\w.\-/\\]){re.escape(folder)}(?=[/\\]|\.?(?:[^\w.\-]|$))"
        text = re.sub(folder_itself, lambda _, r=replacement: r, text)  # type: ignore[misc]
    return ELSEWHERE.sub("…/", text).encode("utf-8", "backslashreplace").decode()


def _machine_folders() -> list[tuple[str, str]]:
    """Folders that say something about the machine and what stands for them, inner ones before outer ones."""
    paths = sysconfig.get_paths()
    named = [
        (paths["purelib"], "site-packages"),
        (paths["platlib"], "site-packages"),
        (paths["stdlib"], "python"),
        (str(Path(glora.__file__).resolve().parent), "glora"),
        (tempfile.gettempdir(), "<temporary>"),
        (str(Path.cwd()), "."),
        (str(Path.home()), "~"),
    ]
    return sorted({pair for pair in named if len(pair[0]) > 1}, key=lambda pair: -len(pair[0]))
