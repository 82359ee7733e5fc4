"""Describe a failed run: a line for the table, the exception's class, its advice and a traceback without machine paths.

A numerical failure or a bad file is an outcome like any other: it is recorded, and the next run begins.
"""

from __future__ import annotations

import re
import sysconfig
import tempfile
import traceback
from pathlib import Path

import glora

MAX_TRACEBACK = 20_000
"""Characters kept of a traceback, from its end, which names the cause."""

ELSEWHERE = re.compile(r"(?<![\w.:/\\~>\-])/(?:[\w.\-+@]+/)+(?=[\w.\-+@])")
"""The folders of an absolute path that is under none of the folders known by name; a URL is not matched."""


def describe_failure(error: BaseException) -> dict[str, str | None]:
    """Return the fields of `RunRecord` that describe an exception: `error`, `exception`, `advice` and `traceback`.

    In all of them, folders that are particular to this machine (packages, the working folder, the home folder) are cut off
    or replaced by `.` and `~`.

    Args:
        error: the exception that ended the run; the traceback includes the exceptions that caused it. Its attribute
            `advice`, if it has one, says what may prevent the failure.
    """
    name, message, advice = type(error).__name__, str(error).strip(), getattr(error, "advice", None)
    whole = "".join(traceback.format_exception(error))
    return {
        "error": _publishable(f"{name}: {message}" if message else name),
        "exception": name,
        "advice": None if advice is None else _publishable(advice),
        "traceback": _publishable(whole)[-MAX_TRACEBACK:],
    }


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
