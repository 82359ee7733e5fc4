"""A file is written whole or not at all, whatever happens meanwhile: a full disk, a kill, a power cut."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class NotWrittenError(OSError):
    """A file could not be written; what stood at its place before still stands there."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file, and its folder if that is missing.

    The text goes to a temporary file in the same folder, is forced to the disk and then takes the place of the old file in
    one step.

    Raises:
        NotWrittenError: the file system refuses; what stood there before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise NotWrittenError(
            error.errno,
            f"not written ({error.strerror or error}); what stood there before is unchanged. "
            "Mend the cause (free space, write permission) and run the command again; finished runs are kept",
            str(path),
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Force the new directory entry to the disk, where a folder can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
