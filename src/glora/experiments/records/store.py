"""Write and read records so that no finished run is lost.

A file is written whole or not at all, despite a full disk, a kill or a power cut. If a record cannot be
written to its folder, because the disk is full for example, another folder keeps it and a message says so.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import tempfile
import zlib
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from pydantic import ValidationError

from glora.experiments.config import RunConfig
from glora.experiments.records.interrupts import hold_interrupts, record_before_interrupts
from glora.experiments.records.schema import SCHEMA_VERSION, RunRecord
from glora.experiments.structured_text import MalformedFileError, decode, parse_json
from glora.paths import replace_file

RUNS_FOLDER = "runs"


class RecordError(ValueError):
    """A file that is not a readable record: malformed, of another schema version, or with invalid fields."""


class NotWrittenError(OSError):
    """A file could not be written; an older file in its place is unchanged."""


class RecordKeptElsewhereError(NotWrittenError):
    """The record of a run could not be written to its folder; an older record there is unchanged.

    Attributes:
        kept: where it is kept instead; None if no other folder could take it.
        unwritten: its text, if no folder could take it; else None.
    """

    def __init__(self, error: NotWrittenError, record: RunRecord, kept: Path | None) -> None:
        remedy = (
            f"This run's record is kept in {str(kept)!r}; once there is room, move it there to skip the run"
            if kept
            else "No other folder could take this run's record either, so it is printed; save it there by hand"
        )
        super().__init__(error.errno, f"{error.strerror}. {remedy}", error.filename)
        self.kept = kept
        self.unwritten = None if kept else record.model_dump_json()


def process_tag() -> str:
    """Return what marks the temporary files of this process: its machine (a checksum) and its number."""
    return f"{zlib.crc32(platform.node().encode()):08x}-{os.getpid()}"


def is_left_over(path: Path) -> bool:
    """Return whether a temporary file or folder belongs to a process of this machine that no longer runs."""
    machine, _, _ = process_tag().partition("-")
    tag = re.search(rf"\b{machine}-(\d+)\b", path.name)
    return tag is not None and not psutil.pid_exists(int(tag[1]))


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and its folder if it is missing; a symbolic link in its place is replaced, not followed.

    The content goes to a temporary file in the same folder, is forced to the disk and then replaces the old file in one step.

    Raises:
        NotWrittenError: the file system refuses; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{process_tag()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.encode() if isinstance(content, str) else content, temporary)
    except OSError as error:
        raise NotWrittenError(
            error.errno,
            f"not written ({error.strerror or error}); an older file there is unchanged. "
            "Fix the cause (free space, write permission) and run the command again; finished runs are kept",
            str(path),
        ) from error
    with contextlib.suppress(OSError):  # force the new entry to the disk, where a folder can be opened (not on Windows)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_record(directory: str | os.PathLike[str], record: RunRecord) -> Path:
    """Write a record to `<directory>/runs/<key>.json`, whole or not at all, and return the path.

    A failed run does not replace a finished one.

    Raises:
        NotWrittenError: the file system refuses; an older record of the same key is unchanged.
    """
    path = _path(directory, record.key)
    if record.status == "failed":
        with contextlib.suppress(OSError, RecordError):
            if read_record(path).status == "finished":
                return path
    write_whole(path, record.model_dump_json(indent=1) + "\n")
    return path


def keep_record(directory: str | os.PathLike[str], record: RunRecord) -> Path:
    """Write a record into an experiment's folder; if that fails, keep it in another one. Return the path.

    The other folder is a new one in the system's temporary folder, often on another file system, or in the home folder. A
    Ctrl-C or SIGTERM during the writing takes effect after it.

    Raises:
        RecordKeptElsewhereError: the file system refuses, for example because the disk is full.
    """
    with record_before_interrupts():
        hold_interrupts()
        try:
            return write_record(directory, record)
        except NotWrittenError as error:
            raise RecordKeptElsewhereError(error, record, _kept_elsewhere(record)) from error


def _path(directory: str | os.PathLike[str], key: str) -> Path:
    return Path(directory) / RUNS_FOLDER / f"{key}.json"


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


def read_record(path: str | os.PathLike[str]) -> RunRecord:
    """Read one record.

    Raises:
        FileNotFoundError: the file does not exist.
        RecordError: it is not a file, not JSON, has another schema version, or does not fit the schema.
    """
    path = Path(path)
    remedy = "Move the file away to have its run made again."
    if os.path.lexists(path) and not path.is_file():
        raise RecordError(f"{path}: a folder, a link without its file or a device, not a record. {remedy}")
    try:
        content = parse_json(decode(path.read_bytes(), path), path, strict=False)
    except MalformedFileError as error:
        raise RecordError(f"{error}. {remedy}") from error
    if not isinstance(content, dict):
        raise RecordError(f"{path}: a record is a JSON object, not {type(content).__name__}. {remedy}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema_version is {version!r}, but this glora reads {SCHEMA_VERSION}. Read it with the glora that wrote "
            "it (provenance.versions in the file), or choose another output folder."
        )
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        raise RecordError(f"{path}: does not fit the schema: {schema_errors(error)}. {remedy}") from error


def schema_errors(error: ValidationError) -> str:
    """Return each field that does not fit, with the reason."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'record'}: {each['msg']}" for each in error.errors())


def read_records(directory: str | os.PathLike[str]) -> list[RunRecord]:
    """Return all records of a folder, by file name.

    Raises:
        RecordError: at the first record that cannot be read.
    """
    return [read_record(path) for path in sorted((Path(directory) / RUNS_FOLDER).glob("*.json"))]


def finished_records(directory: str | os.PathLike[str]) -> dict[str, RunRecord]:
    """Return the records of the finished runs of a folder, by the keys of their configurations; these runs are skipped.

    The records keep the keys of their files, which another version may have given to the same configuration.

    Raises:
        RecordError: at the first record that cannot be read.
    """
    return {record.config.key: record for record in read_records(directory) if record.status == "finished"}


def finished_record(directory: str | os.PathLike[str], config: RunConfig) -> RunRecord | None:
    """Return the record of one run if it is finished by now, else None.

    Raises:
        RecordError: the record cannot be read.
    """
    try:
        record = read_record(_path(directory, config.key))
    except FileNotFoundError:
        return None
    same = record.config.recorded_settings() == config.recorded_settings()
    return record if record.status == "finished" and same else None
