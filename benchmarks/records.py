"""Records as lines of JSON, appended whole, so that a command goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a line that a killed process has cut off is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def append_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Add records by one write, which other processes cannot divide; a line that was cut off is ended first."""
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        cut_off = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * cut_off + b"".join(json.dumps(record).encode() + b"\n" for record in records))


def versions() -> dict[str, str]:
    """Return the versions of Python and of what trains."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "peft", "transformers")}
