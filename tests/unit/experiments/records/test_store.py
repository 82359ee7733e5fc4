"""A full disk, for real where a file system can be mounted, and made up everywhere: no run is lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glora import cli
from glora.experiments.records import schema as records
from glora.experiments.records import store as record_keeping
from glora.experiments.records.schema import (
    RunRecord,
    finished_records,
    read_record,
    read_records,
    record_path,
    write_record,
)
from glora.experiments.records.store import RecordKeptElsewhereError, keep_record
from unit.experiments.synthetic_records import finished_run


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary and the home folder, apart from where the records belong."""
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(record_keeping.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(record_keeping.Path, "home", lambda: tmp_path / "home")
    return tmp_path


def fill(monkeypatch: pytest.MonkeyPatch, *full: Path) -> None:
    """No file in these folders can be forced to the disk."""
    fsync = records.os.fsync

    def refuse(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if any(path.is_relative_to(folder) for folder in full):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(records.os, "fsync", refuse)


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("full", [("results",), ("results", "temporary")])
def test_a_record_that_finds_no_room_is_kept_elsewhere(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, full: tuple[str, ...]
) -> None:
    results = elsewhere / "results"
    old, new = finished_run(train_seconds=1.0), finished_run(train_seconds=2.0)
    place = write_record(results, old)
    with monkeypatch.context() as patch:
        fill(patch, *(elsewhere / name for name in full))
        with pytest.raises(RecordKeptElsewhereError) as caught:
            keep_record(results, new)
    assert read_records(results) == [old], "what stood there before is whole"
    assert left_in(results) == [f"runs/{place.name}"]
    message, kept = str(caught.value), caught.value.kept
    for told in ("No space left on device", "free space", str(place), str(kept)):
        assert told in message
    assert caught.value.errno == errno.ENOSPC
    assert kept.is_relative_to(elsewhere / ("home" if "temporary" in full else "temporary"))
    if "temporary" in full:
        assert not list((elsewhere / "temporary").iterdir()), "nothing half-written is left"

    shutil.move(kept, place)  # as the message says
    assert finished_records(results) == {new.key: new}


def test_a_record_that_can_be_kept_nowhere_is_printed(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = finished_run()
    fill(monkeypatch, elsewhere)
    with pytest.raises(RecordKeptElsewhereError, match="save it there by hand") as caught:
        keep_record(elsewhere / "results", record)
    assert left_in(elsewhere) == []

    def fails(*_: object) -> None:
        raise caught.value

    monkeypatch.setattr("glora.cli.application.app", fails)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert RunRecord.model_validate_json(printed.out) == record
    assert "No space left on device" in printed.err


def test_ctrl_c_while_a_record_is_written_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, calls = finished_run(), []

    def interrupted_once(*arguments: Any) -> Path:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return write_record(*arguments)

    monkeypatch.setattr(record_keeping, "write_record", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        keep_record(tmp_path, record)
    assert read_records(tmp_path) == [record]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "glora-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, elsewhere: Path) -> None:
    old, new = finished_run(train_seconds=1.0, method="lora"), finished_run(train_seconds=2.0, method="lora")
    place = write_record(small_disk, old)
    (small_disk / "ballast").write_bytes(bytes(1))
    with open(small_disk / "ballast", "ab", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(RecordKeptElsewhereError, match="No space left on device") as caught:
        keep_record(small_disk, new)
    assert read_record(place) == old
    assert left_in(small_disk) == ["ballast", f"runs/{place.name}"]
    assert read_record(caught.value.kept) == new
    (small_disk / "ballast").unlink()
    assert keep_record(small_disk, new) == record_path(small_disk, new.key)
    assert read_record(place) == new
