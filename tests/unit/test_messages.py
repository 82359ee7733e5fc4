"""The line at the reallocation is seen, and is a separate line."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from tqdm import tqdm

from glora import RankAllocationCallback
from glora.compress import Compression
from glora.experiments.config import SETTINGS
from glora.messages import PLURALS, SYNONYMS, AboveProgressBars, did_you_mean, get_logger, plain, pluralize


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> logging.Logger:
    logger = logging.Logger("of this test")
    logger.addHandler(AboveProgressBars(stream))
    return logger


def test_a_progress_bar_does_not_share_its_line(
    logger: logging.Logger, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)  # where tqdm looks for bars to take away
    with tqdm(total=4, file=stream, ncols=40) as bar:
        bar.update(2)
        bar.refresh()
        logger.warning("%d of %d matrices", 2, 3)
    # a line ends with what was printed after the last return to its beginning
    assert "2 of 3 matrices" in [line.rpartition("\r")[2] for line in stream.getvalue().splitlines()]


def test_without_tqdm_as_well(logger: logging.Logger, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tqdm")
    logger.warning("seen")
    assert stream.getvalue() == "seen\n"


def test_it_is_heard_until_the_application_configures_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    (handler,) = get_logger().handlers
    record = logging.LogRecord("glora", logging.INFO, "", 0, "ranks", None, None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert handler.filter(record)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    assert not handler.filter(record)


THINGS = "|".join((*PLURALS.values(), "(?:step|run|trial|seed|method|model|example|label|score|time|other|token)s"))


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "step", "0 steps"),
        (1, "step", "1 step"),
        (1200, "step", "1,200 steps"),
        (1, "matrix", "1 matrix"),
        (2, "matrix", "2 matrices"),
        (2, "group of examples", "2 groups of examples"),
    ],
)
def test_one_is_singular(number: int, noun: str, text: str) -> None:
    assert pluralize(number, noun) == text


def test_the_names_of_other_tools_lead_to_ours() -> None:
    assert did_you_mean("lr", SETTINGS) == "; did you mean 'learning_rate'?"
    assert did_you_mean("num-train-epochs", SETTINGS) == "; did you mean 'epochs'?"
    assert did_you_mean("r", ["method"]) == "", "no setting of that name here"
    assert did_you_mean("--bs", ["--batch-size", "--beta"]) == "; did you mean '--batch-size'?"
    assert did_you_mean("R_total", SETTINGS) == "; did you mean 'total_rank'?"
    assert not SYNONYMS.keys() & {plain(name) for name in SETTINGS}, "a setting is not another's name"


def test_what_a_notebook_shows_is_one_line() -> None:
    made = Compression({"a": 8}, {"a": 2}, 0.9, 100, 25)
    assert repr(made) == f"Compression({made})"
    assert repr(RankAllocationCallback(rule="spectrum", average_rank=8)) == (
        "RankAllocationCallback(rule='spectrum', average_rank=8.0)"
    )
    assert repr(RankAllocationCallback()) == "RankAllocationCallback()"
