"""The warning of a matrix that takes over much of an adapter."""

from __future__ import annotations

import pytest

from glora.reallocation import warn_of_dominant


def test_a_matrix_that_takes_over_is_named(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"layer.{i}" for i in range(9)] + ["pooler.dense"]
    before, costs = dict.fromkeys(names, 4), dict.fromkeys(names, 100)
    after = {name: 3 if name == "pooler.dense" else 1 for name in names}  # 3 of 12
    warn_of_dominant(before, before, costs)
    warn_of_dominant(before, after, {**costs, "pooler.dense": 10})  # 30 of 930 parameters
    assert caplog.messages == []
    warn_of_dominant(before, after, costs)
    (message,) = caplog.messages
    assert "in 1 matrix: pooler.dense (25%); max_rank" in message


def test_of_few_matrices_a_large_share_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    before, costs = dict(a=4, b=4, c=4), dict(a=1, b=1, c=1)
    warn_of_dominant(before, dict(a=8, b=4, c=0), costs)
    assert caplog.messages == []


def test_what_was_large_from_the_start_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"layer.{i}" for i in range(9)] + ["embed_tokens"]
    ranks, costs = dict.fromkeys(names, 4), {name: 900 if name == "embed_tokens" else 100 for name in names}
    warn_of_dominant(ranks, {**ranks, "layer.0": 2}, costs)
    warn_of_dominant(ranks, dict.fromkeys(names, 0), costs)
    assert caplog.messages == []
