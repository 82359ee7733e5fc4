"""The global cut: optimal by brute force, the same in every order, and honest about what it keeps."""

from __future__ import annotations

import itertools
import random

import pytest

from glora.allocation.cut import cut_spectra

SPECTRA = {"a": [5.0, 3.0, 0.5], "b": [4.0, 0.1], "c": [2.0, 1.9, 1.8, 0.0]}


def energy_of(spectra: dict[str, list[float]], ranks: dict[str, int]) -> float:
    return sum(value**2 for name, values in spectra.items() for value in values[: ranks[name]])


def best(spectra: dict[str, list[float]], budget: float, costs: dict[str, int]) -> float:
    """The most energy that any ranks within the budget keep."""
    names = list(spectra)
    return max(
        energy_of(spectra, dict(zip(names, ranks)))
        for ranks in itertools.product(*(range(len(spectra[name]) + 1) for name in names))
        if sum(rank * costs[name] for name, rank in zip(names, ranks)) <= budget
    )


def drawn_spectra(seed: int) -> dict[str, list[float]]:
    draw = random.Random(seed)
    return {name: sorted((draw.expovariate(1) for _ in range(4)), reverse=True) for name in "wxyz"}


def test_a_hand_derived_case() -> None:
    cut = cut_spectra(SPECTRA, budget=4)
    assert cut.ranks == {"a": 2, "b": 1, "c": 1}
    assert cut.kept == pytest.approx((25 + 9 + 16 + 4) / energy_of(SPECTRA, {"a": 3, "b": 2, "c": 4}))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [1, 5, 9, 16])
def test_with_a_rank_budget_no_other_ranks_keep_more(seed: int, budget: int) -> None:
    spectra = drawn_spectra(seed)
    ranks = cut_spectra(spectra, budget=budget).ranks
    assert sum(ranks.values()) == budget
    assert energy_of(spectra, ranks) == pytest.approx(best(spectra, budget, dict.fromkeys(spectra, 1)))


@pytest.mark.parametrize("seed", range(5))
def test_with_a_parameter_budget_at_most_the_direction_at_the_cut_is_lost(seed: int) -> None:
    spectra, costs = drawn_spectra(seed), {"w": 2, "x": 3, "y": 5, "z": 7}
    for budget in (7, 20, 41):
        cut = cut_spectra(spectra, budget=budget, costs=costs)
        spent = sum(rank * costs[name] for name, rank in cut.ranks.items())
        assert budget - max(costs.values()) < spent <= budget
        worth = [spectra[name][rank] ** 2 for name, rank in cut.ranks.items() if rank < 4]
        assert energy_of(spectra, cut.ranks) >= best(spectra, budget, costs) - max(worth)


def test_costs_decide_between_equal_directions() -> None:
    spectra = {"dear": [1.0, 1.0], "cheap": [0.9, 0.9]}
    assert cut_spectra(spectra, budget=40, costs={"dear": 20, "cheap": 10}).ranks == {"dear": 1, "cheap": 2}
    assert cut_spectra(spectra, budget=2).ranks == {"dear": 2, "cheap": 0}


def test_energy_takes_the_fewest_directions_that_hold_it() -> None:
    total = energy_of(SPECTRA, {"a": 3, "b": 2, "c": 4})
    for energy in (0.3, 0.8, 0.95):
        cut = cut_spectra(SPECTRA, energy=energy)
        count = sum(cut.ranks.values())
        assert cut.kept >= energy
        assert best(SPECTRA, count - 1, dict.fromkeys(SPECTRA, 1)) < energy * total
    everything = cut_spectra(SPECTRA, energy=1)
    assert everything.ranks == {"a": 3, "b": 2, "c": 3}, "a direction of zero holds nothing"
    assert everything.kept == 1


def test_bounds_hold_and_are_paid_for_first() -> None:
    cut = cut_spectra(SPECTRA, budget=5, min_ranks={"b": 2}, max_ranks={"a": 1})
    assert cut.ranks == {"a": 1, "b": 2, "c": 2}


def test_equal_directions_go_to_the_name_that_sorts_first() -> None:
    spectra = {"b": [1.0, 1.0], "a": [1.0, 1.0]}
    assert cut_spectra(spectra, budget=3).ranks == {"b": 1, "a": 2}
    assert cut_spectra(dict(reversed(spectra.items())), budget=3).ranks == {"a": 2, "b": 1}


def test_nothing_learned_keeps_nothing() -> None:
    cut = cut_spectra({"a": [0.0, 0.0]}, budget=2)
    assert (cut.ranks, cut.kept) == ({"a": 0}, 1.0)


def test_minima_that_the_budget_does_not_pay_for() -> None:
    with pytest.raises(ValueError, match="1 short of min_rank"):
        cut_spectra(SPECTRA, budget=1, min_ranks={"a": 2})


def test_a_matrix_that_has_diverged_is_named() -> None:
    with pytest.raises(ValueError, match="'b'.* inf or NaN"):
        cut_spectra({"a": [1.0], "b": [float("nan")]}, budget=1)
