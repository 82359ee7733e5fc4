"""Records: the schema holds, nothing is lost on the way to the disk and back, and no half record is ever left."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from glora.experiments.records import schema as records
from glora.experiments.records import whole_files
from glora.experiments.records.schema import (
    RecordError,
    RunRecord,
    finished_records,
    read_record,
    read_records,
    record_path,
    write_record,
)
from glora.experiments.records.whole_files import NotWrittenError
from unit.experiments.synthetic_records import failed_run, finished_run


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = finished_run(method="glora", seed=1)
    path = write_record(tmp_path, record)
    assert path == tmp_path / "runs" / f"{record.config.key}.json"
    assert read_record(path) == record
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_nan_and_infinity_survive_and_the_file_is_strict_json(tmp_path: Path) -> None:
    record = finished_run(final={"accuracy": math.nan, "loss": math.inf, "gain": -math.inf})
    path = write_record(tmp_path, record)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    final = read_record(path).final
    assert math.isnan(final["accuracy"])
    assert (final["loss"], final["gain"]) == (math.inf, -math.inf)


def test_every_field_of_every_part_is_described() -> None:
    parts = [part for part in vars(records).values() if isinstance(part, type) and issubclass(part, BaseModel)]
    undescribed = [
        f"{part.__name__}.{name}"
        for part in parts
        for name, field in part.model_fields.items()
        if not field.description
    ]
    assert len(parts) >= 7
    assert undescribed == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1,\n "key": }', r"line 2, column 9"),
        ("", r"line 1, column 1"),
        ("[1, 2]", r"a record is a JSON object, not list"),
        ('{"schema_version": 99}', r"schema_version is 99, but this glora reads 1"),
        ("{}", r"schema_version is None"),
    ],
)
def test_what_is_no_record_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(b'{"key": "\xff"}')
    with pytest.raises(RecordError, match="not UTF-8 text"):
        read_record(path)


def test_all_faults_of_a_record_are_named_at_once(tmp_path: Path) -> None:
    path = write_record(tmp_path, finished_run())
    content = json.loads(path.read_text(encoding="utf-8"))
    content["train_seconds"] = "soon"
    content["config"]["seed"] = -1
    content["surprise"] = 1
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RecordError, match=r"config\.seed: .*train_seconds: .*surprise: "):
        read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final": {}}, "needs its primary metric in `final`"),
        ({"primary_metric": None}, "needs its primary metric in `final`"),
        ({"train_seconds": None}, "needs `train_seconds`"),
        ({"error": "ValueError: no"}, "a finished run has no `error`"),
        ({"status": "failed"}, "a failed run needs `error`"),
    ],
)
def test_a_status_that_contradicts_the_fields_is_refused(change: dict[str, object], message: str) -> None:
    content = finished_run().model_dump()
    with pytest.raises(ValidationError, match=message):
        RunRecord.model_validate({**content, **change})


def test_only_finished_runs_are_finished(tmp_path: Path) -> None:
    finished, failed = finished_run(method="lora"), failed_run(method="glora")
    for record in (finished, failed):
        write_record(tmp_path, record)
    assert finished_records(tmp_path) == {finished.key: finished}
    assert {record.key for record in read_records(tmp_path)} == {finished.key, failed.key}


def test_a_folder_without_runs_holds_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "nowhere") == []
    assert finished_records(tmp_path) == {}


@pytest.mark.parametrize("refusing", ["open", "write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_record_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    old = finished_run(train_seconds=1.0)
    path = write_record(tmp_path, old)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile:
        def __init__(self, *_: object, **__: object) -> None:
            self.file = open(path.with_name(".partly.tmp"), "w")  # noqa: SIM115

        def __enter__(self) -> FullFile:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()
            os.unlink(self.file.name)

        write = full

    if refusing in ("open", "write"):
        monkeypatch.setattr(whole_files, "open", full if refusing == "open" else FullFile, raising=False)
    else:
        monkeypatch.setattr(whole_files.os, refusing, full)
    with pytest.raises(NotWrittenError, match=r"No space left on device.*unchanged.*free space") as caught:
        write_record(tmp_path, finished_run(train_seconds=2.0))
    monkeypatch.undo()
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
        "from glora.experiments.records import schema as records, whole_files\n"
        "whole_files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"records.write_record({str(tmp_path)!r}, finished_run(train_seconds=2.0))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2, "the kill was to hit while the temporary file was there"
    assert read_records(tmp_path) == [old]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file stands in the way")
    with pytest.raises(NotWrittenError, match="not written"):
        write_record(tmp_path, finished_run())


def test_a_rerun_takes_the_place_of_the_failed_run(tmp_path: Path) -> None:
    write_record(tmp_path, failed_run(method="lora"))
    record = finished_run(method="lora")
    write_record(tmp_path, record)
    assert read_records(tmp_path) == [record]
    assert record_path(tmp_path, record.key).is_file()
