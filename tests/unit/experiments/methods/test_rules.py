"""The rules that cut, in an experiment: how wide they start, what they are named, and what is refused."""

from __future__ import annotations

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.methods.base import unread_settings
from glora.experiments.methods.limits import average_rank, start_rank
from glora.experiments.methods.registry import find_method
from glora.experiments.search.ranges import parse_range
from glora.experiments.search.space import searched_by


@pytest.mark.parametrize(
    ("average", "factor", "start"), [(8, 4, 32), (0.5, 4, 2), (2.5, 2, 5), (1, 1.01, 2), (3, 1.1, 4)], ids=str
)
def test_the_start_is_wider_than_the_average(average: float, factor: float, start: int) -> None:
    assert start_rank(average, factor) == start > average


def test_the_average_is_that_of_the_budget() -> None:
    allocation = RunConfig.model_validate({"total_rank": 36}).allocation
    assert average_rank(allocation, 72, default=8) == 0.5
    assert average_rank(RunConfig.model_validate({"average_rank": 2}).allocation, 72, default=8) == 2
    assert average_rank(RunConfig().allocation, 72, default=8) == 8


def test_a_variant_is_validated_as_a_whole() -> None:
    method = find_method("glora:energy=0.9:rule=spectrum")
    assert method.name == "glora:rule=spectrum:energy=0.9"
    config = method.normalise(RunConfig(), seed=3)
    assert (config.allocation.rule, config.allocation.energy, config.setting("keep")) == ("spectrum", 0.9, "svd")
    with pytest.raises(ValueError, match="energy=0.9 needs rule='spectrum'"):
        find_method("glora:energy=0.9")
    with pytest.raises(ValueError, match="start_factor"):
        find_method("lora:start_factor=2")


def test_a_start_that_nobody_reads_changes_no_run() -> None:
    lora = find_method("lora")
    wide, narrow = (lora.normalise(RunConfig(start_factor=f), seed=0) for f in (4, 2))
    assert wide.key == narrow.key
    spectrum = find_method("glora:rule=spectrum")
    assert spectrum.normalise(RunConfig(start_factor=2), seed=0).key != spectrum.normalise(RunConfig(), seed=0).key


@pytest.mark.parametrize("method", ["glora", "shuffled"])
def test_settings_that_the_rule_does_not_read_change_no_run(method: str) -> None:
    other = {"start_factor": 2, "beta": 0.5, "signal": "lora_b", "exact_every": 4}
    reads = {
        "": {"beta", "signal"},
        ":rule=spectrum": {"start_factor"},
        ":rule=uniform": {"start_factor"},
        ":signal=delta_exact": {"beta", "exact_every"},
    }
    for variant, read in reads.items():
        chosen = find_method(method + variant)
        for name, value in other.items():
            changed = chosen.normalise(RunConfig.model_validate({name: value}), seed=0)
            same = changed.key == chosen.normalise(RunConfig(), seed=0).key
            assert same == (name not in read), (variant, name)


@pytest.mark.parametrize(
    ("variant", "error"),
    [
        ("glora:start_factor=2", "start_factor is read with rule=spectrum or rule=uniform only; leave it out"),
        ("shuffled:start_factor=4", "start_factor is read with rule=spectrum"),
        ("glora:rule=spectrum:beta=0.5", "beta is read with rule=gradient_norm only"),
        ("glora:exact_every=4", "exact_every is read with signal=delta_exact only"),
    ],
)
def test_a_variant_of_a_setting_that_its_rule_does_not_read(variant: str, error: str) -> None:
    (found,) = find_method(variant).setting_errors(RunConfig())
    assert found.startswith(error)


def test_the_rule_of_all_methods_counts_for_a_variant() -> None:
    assert find_method("glora:start_factor=2").setting_errors(RunConfig.model_validate({"rule": "spectrum"})) == []


@pytest.mark.parametrize(
    ("methods", "settings", "errors"),
    [
        (
            ["lora", "glora"],
            {"start_factor": 2},
            ["start_factor=2.0 is read by glora with rule=spectrum or rule=uniform, not"],
        ),
        (["lora"], {"beta": 0.5}, ["beta=0.5 is read by glora with rule=gradient_norm, not by lora"]),
        (["lora"], {"total_rank": 96}, ["total_rank=96 is read by glora, not by lora"]),
        (
            ["lora", "glora:rule=spectrum"],
            {"rule": "uniform"},
            ["rule=uniform is read by glora, not by lora, glora:rule="],
        ),
        (["lora", "adalora"], {"total_rank": 96}, []),
        (["glora", "glora:rule=spectrum"], {"start_factor": 2, "beta": 0.5}, []),
        (["glora"], {"rule": "spectrum", "start_factor": 2}, []),
    ],
)
def test_a_setting_that_no_method_reads(methods: list[str], settings: dict, errors: list[str]) -> None:
    found = unread_settings(RunConfig.model_validate(settings), [find_method(name) for name in methods])
    assert len(found) == len(errors)
    assert all(message.startswith(error) for message, error in zip(found, errors))


def test_what_a_method_does_not_read_or_a_variant_fixes_is_not_searched() -> None:
    ranges = [
        parse_range("beta", "0.8-0.99"),
        parse_range("start_factor", "2-8"),
        parse_range("learning_rate", "1e-4-1e-2"),
    ]
    searched = {
        "lora": ["learning_rate"],
        "lora:total_rank=9": ["learning_rate"],
        "glora": ["beta", "learning_rate"],
        "glora:beta=0.9": ["learning_rate"],
        "glora:rule=spectrum": ["start_factor", "learning_rate"],
    }
    for name, settings in searched.items():
        assert [found.setting for found in searched_by(find_method(name), RunConfig(), ranges)] == settings, name
    rules = [*ranges, parse_range("rule", "gradient_norm,spectrum")]
    assert searched_by(find_method("glora"), RunConfig(), rules) == tuple(rules)


def test_runs_of_before_the_rules_keep_their_names() -> None:
    old = RunConfig.model_validate(RunConfig(method="glora").model_dump() | {"allocation": {"keep": "norm"}})
    assert old.key == RunConfig(method="glora").key


@pytest.mark.parametrize(
    ("fields", "words"), [({"max_rank": 1}, "cannot spend"), ({"min_rank": 3}, "more than")], ids=str
)
def test_bounds_of_a_cut_are_those_of_its_average(fields: dict, words: str) -> None:
    (error,) = find_method("glora:rule=spectrum:average_rank=2").setting_errors(RunConfig.model_validate(fields))
    assert words in error
