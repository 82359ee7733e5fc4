"""The schema of records: nothing is lost on the way to the disk and back, and contradictions are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from glora.experiments.records import schema
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import RecordError, finished_records, read_record, read_records, write_record
from unit.experiments.synthetic_records import failed_run, finished_run


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = finished_run(method="glora", seed=1)
    path = write_record(tmp_path, record)
    assert path == tmp_path / "runs" / f"{record.config.key}.json"
    assert read_record(path) == record


def test_nan_and_infinity_survive_and_the_file_is_strict_json(tmp_path: Path) -> None:
    path = write_record(tmp_path, finished_run(final={"accuracy": math.nan, "loss": math.inf, "gain": -math.inf}))
    json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    final = read_record(path).final
    assert math.isnan(final["accuracy"])
    assert (final["loss"], final["gain"]) == (math.inf, -math.inf)


def test_every_field_of_every_part_is_described() -> None:
    parts = [part for part in vars(schema).values() if isinstance(part, type) and issubclass(part, BaseModel)]
    assert len(parts) >= 7
    assert [(part, name) for part in parts for name, field in part.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema_version": 1,\n "key": }', r"line 2, column 9"),
        (b"", r"line 1, column 1"),
        (b"[1, 2]", r"not list"),
        (b'{"schema_version": 99}', r"schema_version is 99, but this glora reads 1"),
        (b"{}", r"schema_version is None"),
        (b'{"key": "\xff"}', "not UTF-8 text"),
    ],
)
def test_other_files_are_refused_with_the_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_all_errors_of_a_record_are_named_at_once(tmp_path: Path) -> None:
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
        ({"final": {}}, "primary metric in `final`"),
        ({"primary_metric": None}, "primary metric in `final`"),
        ({"train_seconds": None}, "needs `train_seconds`"),
        ({"error": "ValueError: no"}, "finished run .*`error`"),
        ({"status": "failed"}, "a failed run needs `error`"),
    ],
)
def test_a_status_that_contradicts_the_fields_is_refused(change: dict[str, object], message: str) -> None:
    content = finished_run().model_dump()
    with pytest.raises(ValidationError, match=message):
        RunRecord.model_validate({**content, **change})


def test_only_finished_runs_are_finished(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    finished, failed = finished_run(method="lora"), failed_run(method="glora")
    for record in (finished, failed):
        write_record(tmp_path, record)
    assert finished_records(tmp_path) == {finished.key: finished}
    assert {record.key for record in read_records(tmp_path)} == {finished.key, failed.key}
