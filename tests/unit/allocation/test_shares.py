"""Allocation against a brute force over all integer vectors, and the invariances that the rule must have."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from glora import allocate_ranks

NAMES = ["a", "b", "c", "d"]


def brute_force(scores: dict[str, float], total: int, low: int, high: int) -> dict[str, int]:
    """The share clip(λ·s, low, high) by bisection, then the nearest integer vector by trying them all."""

    def share(level: Fraction) -> dict[str, Fraction]:
        return {k: min(max(level * Fraction(s), Fraction(low)), Fraction(high)) for k, s in scores.items()}

    bottom, top = Fraction(0), Fraction(high + 1) / min(Fraction(s) for s in scores.values())
    for _ in range(300):
        middle = (bottom + top) / 2
        bottom, top = (middle, top) if sum(share(middle).values()) < total else (bottom, middle)
    target = share(top)
    names = sorted(scores)
    fitting = [
        dict(zip(names, ranks))
        for ranks in itertools.product(range(low, high + 1), repeat=len(names))
        if sum(ranks) == total
    ]
    # Bisection is not exact: distances equal to 30 digits are ties, and ties favour the name that sorts first.
    best = min(sum((r[k] - target[k]) ** 2 for k in names) for r in fitting)
    near = [r for r in fitting if sum((r[k] - target[k]) ** 2 for k in names) - best < Fraction(1, 10**30)]
    return max(near, key=lambda r: [r[k] for k in names])


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    total=st.integers(1, 16),
    low=st.integers(0, 2),
    high=st.integers(1, 7),
)
@example(values=[1, 1, 1], total=8, low=0, high=7)  # a tie
@example(values=[50, 1, 1], total=9, low=0, high=4)  # a cap whose surplus is spent again
@example(values=[50, 1, 1, 1], total=11, low=2, high=7)  # minima that take from the others
def test_nearest_integer_vector(values: list[int], total: int, low: int, high: int) -> None:
    scores = {name: float(value) for name, value in zip(NAMES, values)}
    assume(low <= high and len(scores) * low <= total <= len(scores) * high)
    assert allocate_ranks(scores, total, min_rank=low, max_rank=high) == brute_force(scores, total, low, high)


scores_strategy = st.dictionaries(
    st.text("abcdef.0123", min_size=1, max_size=6),
    st.floats(0, 1e6, allow_nan=False, allow_subnormal=False),
    min_size=1,
    max_size=12,
).filter(lambda scores: any(scores.values()))


@settings(max_examples=200, deadline=None)
@given(scores=scores_strategy, total=st.integers(1, 200), seed=st.integers(0, 100))
def test_sum_order_and_scale(scores: dict[str, float], total: int, seed: int) -> None:
    ranks = allocate_ranks(scores, total)
    assert sum(ranks.values()) == total
    assert list(ranks) == list(scores)
    assert all(isinstance(r, int) and r >= 0 for r in ranks.values())
    shuffled = list(scores.items())
    random.Random(seed).shuffle(shuffled)
    assert allocate_ranks(dict(shuffled), total) == ranks
    # A power of two multiplies a float without rounding it, so the shares are the same numbers.
    assert allocate_ranks({k: s * 4.0 for k, s in scores.items()}, total) == ranks


@settings(max_examples=200, deadline=None)
@given(scores=scores_strategy, total=st.integers(1, 200))
def test_without_bounds_every_rank_is_its_share_rounded_up_or_down(scores: dict[str, float], total: int) -> None:
    ranks = allocate_ranks(scores, total)
    whole = sum(Fraction(s) for s in scores.values())
    for name, score in scores.items():
        assert abs(ranks[name] - Fraction(score) * total / whole) < 1
        assert ranks[name] == 0 or score > 0


@settings(max_examples=200, deadline=None)
@given(data=st.data(), scores=scores_strategy, per_matrix=st.integers(1, 16))
def test_parameter_budget_is_kept_within_one_column(
    data: st.DataObject, scores: dict[str, float], per_matrix: int
) -> None:
    costs = {name: data.draw(st.integers(2, 5000), label=name) for name in scores}
    high = {name: data.draw(st.integers(per_matrix, 40), label=name) for name in scores}
    total = per_matrix * len(scores)
    ranks = allocate_ranks(scores, total, costs=costs, max_rank=high)
    left = per_matrix * sum(costs.values()) - sum(ranks[k] * costs[k] for k in ranks)
    assert left >= 0
    assert all(costs[k] > left for k in ranks if ranks[k] < high[k] and scores[k] > 0)
    assert all(ranks[k] == 0 for k in ranks if scores[k] == 0)
    assert all(0 <= ranks[k] <= high[k] for k in ranks)


def test_parameter_budget_counts_what_a_rank_costs() -> None:
    scores, costs = {"narrow": 1.0, "wide": 1.0}, {"narrow": 100, "wide": 300}
    assert allocate_ranks(scores, 8, costs=costs) == {"narrow": 4, "wide": 4}
    # 8 ranks at a mean of 200 buy 1600 parameters; 3:1 is 8 and 2.67 ranks. After 8·100 + 2·300 a third wide column
    # (300) would not fit into the 200 left, and two narrow ones do.
    assert allocate_ranks({"narrow": 3.0, "wide": 1.0}, 8, costs=costs) == {"narrow": 10, "wide": 2}
    # 1 rank at a mean of 225 buys two narrow ones; the 25 that nothing can spend are no error where nothing bounds the ranks
    assert allocate_ranks(scores, 1, costs={"narrow": 100, "wide": 350}) == {"narrow": 2, "wide": 0}


def test_bounds_by_name() -> None:
    scores = {"a": 8.0, "b": 1.0, "c": 1.0}
    assert allocate_ranks(scores, 10, max_rank={"a": 4}) == {"a": 4, "b": 3, "c": 3}
    assert allocate_ranks(scores, 10, min_rank={"c": 3}) == {"a": 6, "b": 1, "c": 3}


def test_matrices_without_a_score_share_what_the_others_cannot_hold() -> None:
    assert allocate_ranks({"a": 1.0, "b": 0.0, "c": 0.0}, 9, max_rank=4) == {"a": 4, "b": 3, "c": 2}


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    expected = allocate_ranks({"a": 0.5, "b": 0.25}, 7, min_rank=1, max_rank=4)
    for number in (np.float32, np.float64, torch.tensor):
        ranks = allocate_ranks(
            {"a": number(0.5), "b": number(0.25)}, np.int64(7), min_rank=np.int32(1), max_rank={"a": np.int64(4)}
        )
        assert ranks == expected
        assert {type(rank) for rank in ranks.values()} == {int}


def test_ties_go_to_the_name_that_sorts_first() -> None:
    assert allocate_ranks({"c": 1.0, "a": 1.0, "b": 1.0}, 4) == {"c": 1, "a": 2, "b": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(scores={}, total_rank=4), "scores is empty"),
        (dict(scores={"a": 0.0}, total_rank=4), "none of 1 score "),
        (dict(scores={"a": 1.0, "b": float("nan")}, total_rank=4), "the first is 'b': nan"),
        (dict(scores={"a": -1.0}, total_rank=4), "the first is 'a': -1.0"),
        (dict(scores={"a": 1.0}, total_rank=0), "total_rank=0 .*at least 1"),
        (dict(scores={"a": 1.0}, total_rank=2.5), "total_rank=2.5 must be an integer"),
        (
            dict(scores=dict.fromkeys("abc", 1.0), total_rank=5, min_rank=2),
            "total_rank=5 .*3 matrices .*min_rank of 2; .*total_rank to at least 6 .*min_rank",
        ),
        (
            dict(scores=dict.fromkeys("abc", 1.0), total_rank=10, max_rank=3),
            "total_rank=10 .*3 matrices .*max_rank=3; .*total_rank to at most 9",
        ),
        (dict(scores={"a": 1.0}, total_rank=4, min_rank=3, max_rank=2), "min_rank=3 is above max_rank=2 for 'a'"),
        (dict(scores={"query": 1.0}, total_rank=4, max_rank={"qeury": 2}), "max_rank names 'qeury'.*'query'"),
        (dict(scores={"a": 1.0}, total_rank=4, min_rank=-1), "min_rank for 'a' is -1"),
        (dict(scores={"a": 1.0}, total_rank=4, costs={"b": 2}), "costs .*no entry .*'a'"),
        (dict(scores={"a": 1.0}, total_rank=4, costs={"a": 0}), r"costs\['a'\]=0 .*at least 1"),
        (dict(scores={"a": 1.0}, total_rank=4, costs={"a": 1.5}), r"costs\['a'\]=1.5 must be an integer"),
        (dict(scores={"a": 1.0}, total_rank=4, costs={"a": "9"}), r"costs\['a'\]='9' must be an integer"),
        (dict(scores={"a": "1"}, total_rank=4), r"scores\['a'\]='1' must be a number"),
    ],
)
def test_bad_input_names_the_value_the_rule_and_the_remedy(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate_ranks(**arguments)


def test_the_advised_total_is_accepted() -> None:
    costs = {"a": 100, "b": 300, "c": 55}
    with pytest.raises(ValueError, match=r"raise total_rank to at least (\d+)") as error:
        allocate_ranks(dict.fromkeys(costs, 1.0), 1, min_rank={"b": 2}, costs=costs)
    advised = int(str(error.value).split("at least ")[1].split()[0])
    assert allocate_ranks(dict.fromkeys(costs, 1.0), advised, min_rank={"b": 2}, costs=costs)["b"] >= 2
    with pytest.raises(ValueError, match=rf"total_rank={advised - 1} .* at least {advised} "):
        allocate_ranks(dict.fromkeys(costs, 1.0), advised - 1, min_rank={"b": 2}, costs=costs)


def test_a_matrix_without_a_score_gets_nothing_that_is_left_over() -> None:
    costs = {"a": 100, "b": 10}
    assert allocate_ranks({"a": 1, "b": 0}, 3, costs=costs) == {"a": 1, "b": 0}
    assert allocate_ranks({"a": 1, "b": 0}, 3, costs=costs, min_rank={"b": 2}) == {"a": 1, "b": 2}
