"""Log messages on the command line's console: glora's always, the libraries' when asked for."""

from __future__ import annotations

import io
import logging
import os
import warnings

import pytest

from glora.cli.library_messages import LIBRARIES, log_messages_on
from glora.experiments.terminal import Terminal
from glora.messages import get_logger


def console() -> Terminal:
    return Terminal(file=io.StringIO(), width=200)


def said(on: Terminal) -> list[str]:
    return on.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("verbosity", "shown"), [(0, ["error"]), (1, ["warning", "error"]), (2, ["info", "warning", "error"])]
)
def test_libraries_say_as_much_as_is_asked_for(verbosity: int, shown: list[str]) -> None:
    out = console()
    with log_messages_on(out, verbosity):
        logger = logging.getLogger("transformers.trainer")
        logger.info("info")
        logger.warning("warning")
        logger.error("error")
    assert said(out) == [f"transformers.trainer: {text}" for text in shown]


@pytest.mark.parametrize(("verbosity", "level"), [(0, logging.ERROR), (1, logging.WARNING), (2, logging.INFO)])
def test_datasets_is_as_quiet_if_it_is_imported_only_later(verbosity: int, level: int) -> None:
    """It sets the level of its logger when it is imported, over the one that it was given."""
    from datasets.utils import logging as datasets_logging

    with log_messages_on(console(), verbosity):
        assert datasets_logging._get_default_logging_level() == level
    assert "DATASETS_VERBOSITY" not in os.environ


def test_glora_is_always_heard_and_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    out = console()
    with log_messages_on(out):
        get_logger().info("ranks [1] changed")
        logging.getLogger("glora.experiments.training.generative").warning("cut off")
    assert said(out) == ["glora: ranks [1] changed", "glora: cut off"]
    assert "ranks" not in capsys.readouterr().err


def test_python_warnings_are_shown_when_asked_for() -> None:
    quiet, verbose = console(), console()
    with log_messages_on(quiet, 0):
        warnings.warn("old", FutureWarning, stacklevel=1)
    with log_messages_on(verbose, 1):
        warnings.warn("old", FutureWarning, stacklevel=1)
    assert said(quiet) == []
    assert any("FutureWarning: old" in line for line in said(verbose))


def test_afterwards_everything_is_as_it_was() -> None:
    root = logging.getLogger()
    before = [*root.handlers], {name: logging.getLogger(name).level for name in LIBRARIES}, [*warnings.filters]
    with pytest.raises(KeyError), log_messages_on(console()):
        raise KeyError
    assert (
        [*root.handlers],
        {name: logging.getLogger(name).level for name in LIBRARIES},
        [*warnings.filters],
    ) == before
