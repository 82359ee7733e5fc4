"""Interrupts wait from the last evaluation on until the record is written, and none is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from glora.experiments.records.interrupts import hold_interrupts, raise_swallowed_interrupt, record_before_interrupts


class Terminated(KeyboardInterrupt):
    pass


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_an_interrupt_waits_for_the_end_of_the_block_and_a_second_one_too(number: int, raised: type) -> None:
    done: list[str] = []
    with pytest.raises(raised), record_before_interrupts():
        hold_interrupts()
        signal.raise_signal(number)
        with record_before_interrupts():
            hold_interrupts()
            done.append("recorded")
        signal.raise_signal(signal.SIGINT)
        done.append("ended")
    assert done == ["recorded", "ended"]
    with pytest.raises(raised):
        signal.raise_signal(number)


def test_a_run_that_trains_is_interrupted_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), record_before_interrupts():
        signal.raise_signal(signal.SIGINT)
        raise AssertionError
    hold_interrupts()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_of_the_block_is_not_hidden_by_an_interrupt() -> None:
    with pytest.raises(OSError, match="no room"), record_before_interrupts():
        hold_interrupts()
        signal.raise_signal(signal.SIGINT)
        raise OSError("no room")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_library_swallows_is_raised_again(number: int) -> None:
    done: list[str] = []

    def swallow() -> None:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            done.append("swallowed")

    with pytest.raises(KeyboardInterrupt), record_before_interrupts():
        swallow()
        raise_swallowed_interrupt()
        done.append("not reached")
    with pytest.raises(KeyboardInterrupt), record_before_interrupts():
        swallow()
        hold_interrupts()
        raise_swallowed_interrupt()
        done.append("held")
    raise_swallowed_interrupt()
    assert done == ["swallowed", "swallowed", "held"]


def test_a_block_inside_another_holds_interrupts_to_its_own_end() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), record_before_interrupts():
        with record_before_interrupts():
            hold_interrupts()
            signal.raise_signal(signal.SIGINT)
            done.append("recorded")
        done.append("not reached")
    assert done == ["recorded"]


def test_a_signal_whose_handler_returns_interrupts_nothing() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        with record_before_interrupts():
            signal.raise_signal(signal.SIGINT)
            raise_swallowed_interrupt()
            hold_interrupts()
            signal.raise_signal(signal.SIGINT)
            assert len(received) == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(received) == 2
