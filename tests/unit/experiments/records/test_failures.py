"""A failure is recorded with its class and advice, and without this machine's folders."""

from __future__ import annotations

import json
from pathlib import Path

from glora.experiments.records.failures import MAX_TRACEBACK, describe_failure
from glora.experiments.training.metrics import DivergedError
from unit.experiments.synthetic_records import failed_run


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return raised


def test_class_message_advice_and_traceback_with_the_cause() -> None:
    error = DivergedError("the loss is nan", advice="Lower the learning rate")
    error.__cause__ = KeyError("inner")
    failure = describe_failure(caught(error))
    trace = failure.pop("traceback")
    assert failure == {
        "error": "DivergedError: the loss is nan", "exception": "DivergedError", "kind": "diverged",
        "advice": "Lower the learning rate",
    }  # fmt: skip
    assert "KeyError: 'inner'" in trace
    assert "in caught" in trace
    assert trace.rstrip().endswith("DivergedError: the loss is nan")
    record = failed_run().model_copy(update=failure)
    assert record.failure == "DivergedError: the loss is nan. Lower the learning rate"


def test_an_exception_without_a_message_is_its_type() -> None:
    failure = describe_failure(MemoryError())
    assert (failure["error"], failure["exception"]) == ("MemoryError", "MemoryError")
    assert failure["kind"] is failure["advice"] is None


def test_no_frame_names_a_folder_of_this_machine() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        trace = describe_failure(error)["traceback"]
    frames = [line.split('"')[1] for line in trace.splitlines() if line.lstrip().startswith("File ")]
    assert len(frames) >= 3
    assert not [frame for frame in frames if Path(frame).is_absolute()]


def test_characters_that_utf8_cannot_hold_are_escaped() -> None:
    failure = describe_failure(caught(ValueError("file \udcff")))
    line, trace = failure["error"], failure["traceback"]
    assert line == "ValueError: file \\udcff"
    trace.encode("utf-8")


def test_a_long_traceback_keeps_its_end() -> None:
    trace = describe_failure(caught(ValueError("x" * 3 * MAX_TRACEBACK + " the end")))["traceback"]
    assert len(trace) <= MAX_TRACEBACK
    assert trace.rstrip().endswith("the end")
