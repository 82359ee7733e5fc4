"""Paths that a user names: files that can be read to their end, folders that are not the present one by mistake, and ~."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def regular_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that can be read to its end: a pipe would be waited for, and a device may have no end.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        OSError: it is a pipe, a socket or a device; or its folder cannot be read.
    """
    path = Path(path)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no file {str(path)!r}") from None
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if kind != stat.S_IFREG:
        raise OSError(f"{path} is {_KINDS.get(kind, 'not a file')}; save its content to a file, and name that")
    return path


def named_folder(path: str | os.PathLike[str], what: str = "the output folder") -> Path:
    """Return the path of a folder; an empty name, which pathlib takes for the present folder, is an error."""
    if not os.fspath(path).strip():
        raise ValueError(f"{what} has an empty name; name a folder, or write '.' for this one")
    return Path(path)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return the path with the folder of ~ and ~user; of a user whom the machine does not know it stays, as in shells."""
    return Path(os.path.expanduser(path))


def replace_file(path: Path, content: bytes, temporary: Path | None = None) -> None:
    """Write all of a file or none of it, on the disk; a symbolic link in its place is replaced, not followed.

    Args:
        path: The file.
        content: All of it.
        temporary: The file beside it that is written first. Default: a hidden one of its name.
    """
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
