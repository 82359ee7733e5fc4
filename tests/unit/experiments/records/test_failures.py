"""A failure is recorded with what mends it and without this machine's folders."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from glora.experiments.records.failures import MAX_TRACEBACK, describe_failure


def caught(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as raised:
        return raised


def test_line_and_traceback() -> None:
    failure = describe_failure(caught(ValueError("rank must be positive, not -1")))
    line, trace = failure["error"], failure["traceback"]
    assert line == "ValueError: rank must be positive, not -1"
    assert trace.startswith("Traceback (most recent call last):")
    assert "in caught" in trace
    assert trace.rstrip().endswith(line)


def test_an_exception_without_a_message_is_its_type() -> None:
    assert describe_failure(caught(MemoryError()))["error"] == "MemoryError"


def test_the_cause_is_in_the_traceback() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as cause:
            raise RuntimeError("outer") from cause
    except RuntimeError as error:
        trace = describe_failure(error)["traceback"]
    assert "KeyError: 'inner'" in trace


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"no file {Path.home()}/data/train.tsv", "no file ~/data/train.tsv"),
        (f"no file '{Path.cwd()}/train.tsv'", "no file './train.tsv'"),
        (f"cannot write to {tempfile.gettempdir()}.", "cannot write to <temporary>."),
        ("no file /srv/secret-project/rte/train.tsv: line 3", "no file …/train.tsv: line 3"),
        ("see https://example.org/a/b and and/or", "see https://example.org/a/b and and/or"),
    ],
)
def test_folders_of_this_machine_are_left_out(message: str, shown: str) -> None:
    assert describe_failure(ValueError(message))["error"] == f"ValueError: {shown}"


@pytest.mark.parametrize(
    ("path", "shown"), [("/home/me", "~"), ("/home/me/a", "~/a"), ("/home/mel/a", "…/a"), ("/srv/home/me/a", "…/a")]
)
def test_a_folder_is_recognised_whole(monkeypatch: pytest.MonkeyPatch, path: str, shown: str) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert describe_failure(ValueError(path))["error"] == f"ValueError: {shown}"


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
