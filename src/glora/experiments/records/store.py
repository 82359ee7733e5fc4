"""A run that is finished is not lost for want of a place to write its record: it is kept somewhere else, and the user told.

A run can take hours, its record a moment; the disk that had room when the run began may be full when it ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from glora.experiments.records.schema import RunRecord, write_record
from glora.experiments.records.whole_files import NotWrittenError


class RecordKeptElsewhereError(NotWrittenError):
    """The record of a run could not be written where it belongs; an older one there is untouched.

    Attributes:
        kept: where it is kept in the meantime; None if no other folder could take it.
        unwritten: its text, if it could be kept nowhere; else None.
    """

    def __init__(self, error: NotWrittenError, record: RunRecord, kept: Path | None) -> None:
        remedy = (
            f"This run's record is kept in {str(kept)!r}; once there is room, move it there and the run is not made again"
            if kept
            else "No other folder could take this run's record either, so it is printed; save it there by hand"
        )
        super().__init__(error.errno, f"{error.strerror}. {remedy}", error.filename)
        self.kept = kept
        self.unwritten = None if kept else record.model_dump_json()


def keep_record(directory: str | os.PathLike[str], record: RunRecord) -> Path:
    """Write a record into an experiment's folder; if that is refused, keep it somewhere else.

    Somewhere else is a new folder of the system's temporary one, which often is another file system, or of the home
    folder. A Ctrl-C that comes while the record is written comes after it.

    Args:
        directory: the experiment's folder.
        record: the run's record.

    Returns:
        The record's path.

    Raises:
        RecordKeptElsewhereError: the file system refuses, such as for a full disk.
    """
    try:
        return _write_or_keep(directory, record)
    except KeyboardInterrupt:
        _write_or_keep(directory, record)
        raise


def _write_or_keep(directory: str | os.PathLike[str], record: RunRecord) -> Path:
    try:
        return write_record(directory, record)
    except NotWrittenError as error:
        raise RecordKeptElsewhereError(error, record, _kept_elsewhere(record)) from error


def _kept_elsewhere(record: RunRecord) -> Path | None:
    for find_parent in (tempfile.gettempdir, Path.home):
        try:
            folder = tempfile.mkdtemp(prefix="glora-record-", dir=find_parent())
        except (OSError, RuntimeError):  # full as well, or there is no such folder
            continue
        try:
            return write_record(folder, record)
        except NotWrittenError:
            shutil.rmtree(folder, ignore_errors=True)
    return None
