"""A variant is a method with settings of its own: distinguished, recorded, tuned and refused like any other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glora.experiments.config import RunConfig
from glora.experiments.methods.registry import find_method
from glora.experiments.name_resolution import resolve_method_name
from glora.experiments.plan import InvalidComparisonError, plan_comparison


def test_a_variants_settings_hold_whatever_all_methods_are_given() -> None:
    variant = find_method("glora:budget=parameters:learning_rate=2e-3")
    config = variant.normalise(RunConfig(learning_rate=1e-4, budget="rank", beta=0.5), seed=3)
    assert (config.method, config.allocation.budget, config.learning_rate, config.allocation.beta, config.seed) == (
        "glora:learning_rate=0.002:budget=parameters",
        "parameters",
        2e-3,
        0.5,
        3,
    )


def test_two_spellings_of_a_variant_are_one_method() -> None:
    names = ("glora:keep=svd:warmup_steps=0.30", "glora : warmup_steps = 0.3 : keep = svd")
    assert len({find_method(name).name for name in names}) == 1
    assert len({find_method(name).normalise(RunConfig(), 0).key for name in names}) == 1


@pytest.mark.parametrize(
    "settings", ["beta=0.9999999", "warmup_steps=200", "learning_rate=1.5e-3", "learning_rate=1e-5", "keep=svd"]
)
def test_a_variants_name_is_the_variant(settings: str) -> None:
    variant = find_method(f"glora:{settings}")
    assert find_method(variant.name).fixed == variant.fixed
    assert find_method(variant.name).name == variant.name


def test_a_variant_has_another_key_than_its_method() -> None:
    keys = {
        find_method(name).normalise(RunConfig(), 0).key for name in ("glora", "glora:budget=rank", "glora:beta=0.9")
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glora:", "'' is not a setting; write glora:NAME=VALUE, such as glora:budget=parameters"),
        ("glora:svd", "'svd' is not a setting"),
        ("glora:keep=", "'keep=' is not a setting"),
        ("glora:kep=svd", "did you mean 'keep'"),
        ("glora:rank=4", "glora has no own setting 'rank'"),
        ("lora:beta=0.5", "lora has no own setting 'beta'"),
        ("glora:keep=svd:keep=norm", "keep is given twice"),
        ("glora:beta=2", "beta=2.0 must be in [0, 1)"),
        ("lora:", "such as lora:learning_rate=1e-3"),
        ("glore:keep=svd", "unknown method 'glore'; did you mean 'glora' or 'lora'? Methods: lora, rslora, "),
        ("spectrum", "did you mean 'glora:rule=spectrum'"),
    ],
)
def test_what_a_variant_cannot_be_is_refused(name: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        find_method(name)


def test_a_variants_settings_are_checked_with_those_of_all(glue_folder: Path, tmp_path: Path) -> None:
    settings = {"task": "rte", "data_dir": str(glue_folder), "batch_size": 2, "epochs": 3, "rank": 4, "max_rank": 4}
    with pytest.raises(InvalidComparisonError) as error:
        plan_comparison(tmp_path, methods=("lora", "glora:min_rank=5", "glora"), seeds=(0,), settings=settings)
    assert [message.split(":")[:2] for message in error.value.errors] == [["glora", "min_rank=5"]]
    with pytest.raises(InvalidComparisonError) as error:
        plan_comparison(tmp_path, methods=("lora", "glora:warmup_steps=5000"), seeds=(0,), settings=settings)
    assert "glora:warmup_steps=5000: a warm-up of 5,000 steps" in str(error.value)


def test_a_variant_that_is_named_twice_is_refused(glue_folder: Path, tmp_path: Path) -> None:
    settings = {"task": "rte", "data_dir": str(glue_folder)}
    methods = ("lora", "glora:beta=0.50", "glora:beta=0.5")
    with pytest.raises(InvalidComparisonError, match="glora:beta=0.5 .*more than once"):
        plan_comparison(tmp_path, methods=methods, seeds=(0,), settings=settings)


def test_an_experiment_file_spells_a_variants_method_freely() -> None:
    assert resolve_method_name("Vanilla LoRA:total_rank=96") == "lora:total_rank=96"
    with pytest.raises(ValueError, match="adalora has no own setting 'beta'"):
        resolve_method_name("AdaLoRA:beta=0.5")


def test_lora_ignores_the_budget_of_others_but_not_its_own() -> None:
    base = RunConfig(total_rank=50)
    assert find_method("lora").normalise(base, 0).allocation.total_rank is None
    assert find_method("lora:total_rank=96").normalise(base, 0).allocation.total_rank == 96
