"""Writing records: no run is lost and no half record is left, on a full disk or in a kill."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glora import cli
from glora.experiments.records import store
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import (
    NotWrittenError,
    RecordError,
    RecordKeptElsewhereError,
    finished_record,
    finished_records,
    keep_record,
    read_records,
    write_record,
)
from unit.experiments.synthetic_records import failed_run, finished_run


@pytest.mark.parametrize(("module", "name"), [(Path, "open"), (store.os, "fsync"), (store.os, "replace")])
def test_a_full_disk_leaves_the_old_record_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    path = write_record(tmp_path, finished_run(train_seconds=1.0))
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full, raising=False)
        with pytest.raises(NotWrittenError, match="No space left.*unchanged.*free space") as caught:
            write_record(tmp_path, finished_run(train_seconds=2.0))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "a temporary file was left behind"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_while_writing_leaves_the_old_record_whole(tmp_path: Path) -> None:
    old = finished_run(train_seconds=1.0)
    path = write_record(tmp_path, old)
    script = (
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "from unit.experiments.synthetic_records import finished_run\n"
        "from glora.experiments.records import store\n"
        "store.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"store.write_record({str(tmp_path)!r}, finished_run(train_seconds=2.0))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2, "the kill should hit while the temporary file is there"
    assert read_records(tmp_path) == [old]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary and the home folder, apart from where the records belong."""
    for name in ("temporary", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(store.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(store.Path, "home", lambda: tmp_path / "home")
    return tmp_path


def fill(monkeypatch: pytest.MonkeyPatch, *full: Path) -> None:
    """No file in these folders can be forced to the disk."""
    fsync = store.os.fsync

    def refuse(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if any(path.is_relative_to(folder) for folder in full):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(store.os, "fsync", refuse)


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
    for part in ("No space left on device", "free space", str(place), str(kept)):
        assert part in message
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
    with pytest.raises(RecordKeptElsewhereError, match="by hand") as caught:
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
    assert "No space left" in printed.err


def test_ctrl_c_while_a_record_is_written_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, replace = finished_run(), os.replace

    def interrupted(*paths: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        replace(*paths)

    monkeypatch.setattr(store.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep_record(tmp_path, record)
    assert read_records(tmp_path) == [record]


def test_a_failed_run_does_not_replace_a_finished_one(tmp_path: Path) -> None:
    failed, finished = failed_run(), finished_run()
    path = write_record(tmp_path, failed)
    write_record(tmp_path, finished)
    assert keep_record(tmp_path, failed) == path
    assert read_records(tmp_path) == [finished]


def test_a_record_is_found_by_its_configuration(tmp_path: Path) -> None:
    record = finished_run(method="lora")
    older = record.model_copy(update={"key": "rte--named-by-an-older-version"})
    write_record(tmp_path, older)
    assert finished_records(tmp_path) == {record.key: older}
    other = record.config.with_settings({"learning_rate": 1.0})
    write_record(tmp_path, record.model_copy(update={"key": other.key}))
    assert finished_record(tmp_path, other) is None, "another configuration has its name"


def test_the_temporary_file_of_the_longest_key_has_a_name_that_file_systems_take(tmp_path: Path) -> None:
    record = finished_run(model="モ" * 300, task="x" * 300, method="lora")
    assert len(f".{write_record(tmp_path, record).name}.{'f' * 8}-{2**22}.tmp".encode()) <= 255


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to itself", "deep", "digits"])
def test_what_is_no_record_is_one_message_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "runs" / "x.json"
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":  # reading it would wait for ever
        os.mkfifo(path)
    elif kind in ("device", "link to itself"):
        path.symlink_to("/dev/zero" if kind == "device" else path)
    else:
        path.write_text("[" * 100_000 if kind == "deep" else '{"a": ' + "1" * 5_000 + "}")
    with pytest.raises(RecordError, match=rf"{path}.*Move the file away"):
        read_records(tmp_path)
