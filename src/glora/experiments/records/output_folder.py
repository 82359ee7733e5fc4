"""The output folder of a command: one command at a time, and nothing left of killed ones.

The lock is the operating system's. It ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from glora.experiments.records.store import RUNS_FOLDER, is_left_over, write_whole
from glora.messages import get_logger
from glora.paths import regular_file

LOCK_FILE, OWNER_FILE = ".lock", ".in-use-by"
SCRATCH = ".scratch-"
"""Beginning of the name of a run's folder for temporary files."""


class FolderInUseError(OSError):
    """Another command is making runs in the same folder."""


@contextlib.contextmanager
def folder_in_use(output: Path) -> Iterator[None]:
    """Keep other commands out of an output folder, which must exist, and remove what killed ones left there.

    Raises:
        FolderInUseError: another command is at work there.
    """
    lock = FileLock(output / LOCK_FILE, timeout=0)
    owner = output / OWNER_FILE
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(
            f"output={str(output)!r} is in use by {_read(owner)}; wait until it ends or choose another folder (--storage lets "
            "several commands share their runs)"
        ) from None
    except (NotImplementedError, OSError) as error:
        get_logger().warning("%s cannot be locked (%s); start no second command on it", output, error)
        yield
        return
    try:
        write_whole(owner, f"process {os.getpid()} on {platform.node()}")
        remove_leftovers(output)
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def remove_leftovers(output: Path) -> None:
    """Remove half-written files and scratch folders whose processes of this machine no longer run."""
    for folder in (output, output / RUNS_FOLDER, output / "pictures"):
        for path in filter(is_left_over, folder.glob(".*.tmp")):
            path.unlink(missing_ok=True)
    for path in filter(is_left_over, output.glob(f"{SCRATCH}*")):
        shutil.rmtree(path, ignore_errors=True)


def _read(owner: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return regular_file(owner).read_text(encoding="utf-8")
    return "another process"
