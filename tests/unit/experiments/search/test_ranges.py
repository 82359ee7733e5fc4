"""Ranges and names of settings, as people write them in an experiment file."""

from __future__ import annotations

import pytest

from glora.experiments.search.ranges import (
    LOG_BY_NATURE,
    SEARCHABLE,
    SearchRange,
    SearchRangeError,
    find_setting,
    parse_range,
)
from glora.messages import SYNONYMS

A_FIELD = [
    ("learning_rate", "1e-4-5e-4", SearchRange("learning_rate", "float", 1e-4, 5e-4, log=True)),
    ("learning_rate", "1E-05 – 5E-04", SearchRange("learning_rate", "float", 1e-5, 5e-4, log=True)),
    ("learning_rate", "0.0001-0.0005", SearchRange("learning_rate", "float", 1e-4, 5e-4, log=True)),
    ("learning_rate", "1e-4-5e-4 linear", SearchRange("learning_rate", "float", 1e-4, 5e-4)),
    ("beta", "0.8-0.99", SearchRange("beta", "float", 0.8, 0.99)),
    ("beta", ".8 to .99", SearchRange("beta", "float", 0.8, 0.99)),
    ("lora_dropout", "0-0.5", SearchRange("lora_dropout", "float", 0.0, 0.5)),
    ("lora_alpha", "8-32", SearchRange("lora_alpha", "float", 8, 32)),
    ("weight_decay", "1e-3-0.1 (log scale)", SearchRange("weight_decay", "float", 1e-3, 0.1, log=True)),
    ("warmup_steps", "500-1500", SearchRange("warmup_steps", "integer", 500, 1500)),
    ("warmup_steps", "0.1-0.4", SearchRange("warmup_steps", "float", 0.1, 0.4)),
    ("weight_decay", "0-1", SearchRange("weight_decay", "float", 0, 1)),
    ("epochs", "1-3", SearchRange("epochs", "integer", 1, 3)),
    ("total_rank", "96..160", SearchRange("total_rank", "integer", 96, 160)),
    ("total_rank", "16-256 log", SearchRange("total_rank", "integer", 16, 256, log=True)),
    ("total_rank", "96.0-160.0", SearchRange("total_rank", "integer", 96, 160)),
    ("total_rank", "96,128,160", SearchRange("total_rank", "categorical", choices=(96, 128, 160))),
    ("total_rank", [96, 128], SearchRange("total_rank", "categorical", choices=(96, 128))),
    ("learning_rate", ["1e-4", 5e-4], SearchRange("learning_rate", "categorical", choices=(1e-4, 5e-4))),
    ("beta", 0.9, SearchRange("beta", "categorical", choices=(0.9,))),
    ("signal", "delta, lora_b", SearchRange("signal", "categorical", choices=("delta", "lora_b"))),
]


@pytest.mark.parametrize(("setting", "text", "expected"), A_FIELD, ids=[f"{s} {t}" for s, t, _ in A_FIELD])
def test_a_range_is_understood(setting: str, text: object, expected: SearchRange) -> None:
    found = parse_range(setting, text)
    assert found == expected
    assert [type(choice) for choice in found.choices] == [type(choice) for choice in expected.choices]


@pytest.mark.parametrize(
    ("setting", "text", "reason"),
    [
        ("learning_rate", "5e-4-1e-4", "5e-4 below and 1e-4 above; write '1e-4-5e-4'"),
        ("beta", "0.9-0.9", "is one value; write '0.9'"),
        ("learning_rate", "0-5e-4", "log scale, .*above 0, .*'0-5e-4 linear'"),
        ("total_rank", "0-96 log", "log scale, .*above 0$"),
        ("beta", "", "is empty"),
        ("beta", [], "is empty"),
        ("total_rank", "96,,128", "has a value missing"),
        ("total_rank", "96,128,96", "has 96 more than once"),
        ("beta", "0.8-1.2", "beta=1.2 must be in"),
        ("total_rank", "0-96", "total_rank=0 must be an int ≥ 1"),
        ("total_rank", "96.5-128", "96.5: .*integer"),
        ("beta", [0.9, False], "beta=False: .*not true or false"),
        ("rank", True, "rank=True: .*not true or false"),
        ("beta", "high", "'high': .*number"),
        ("signal", "delta,delta_b", "'delta_b': .*'delta', 'delta_exact' or 'lora_b'"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(setting: str, text: object, reason: str) -> None:
    with pytest.raises(SearchRangeError, match=reason) as refused:
        parse_range(setting, text)
    assert str(refused.value).startswith(f"{setting}: the range {text!r}")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("learning_rate", "learning_rate"),
        ("Learning rate", "learning_rate"),
        ("beta (EMA)", "beta"),
        ("EMA beta", "beta"),
        ("R_total", "total_rank"),
        ("warm-up steps", "warmup_steps"),
        ("T_warmup", "warmup_steps"),
        ("num_train_epochs", "epochs"),
        ("Batch-size", "batch_size"),
        ("max_seq_length", "max_length"),
    ],
)
def test_a_setting_is_found_by_what_people_call_it(name: str, setting: str) -> None:
    assert find_setting(name) == setting


def test_an_unknown_setting_is_refused_with_the_nearest() -> None:
    with pytest.raises(SearchRangeError, match="'learning_rat'.*did you mean 'learning_rate'"):
        find_setting("learning_rat")
    with pytest.raises(SearchRangeError, match="'seed' is not a searchable"):
        find_setting("seed")


def test_the_tables_name_settings_that_exist() -> None:
    assert {*SYNONYMS.values(), *LOG_BY_NATURE} <= set(SEARCHABLE)


def test_a_range_is_shown_as_it_was_understood() -> None:
    shown = [str(parse_range(s, t)) for s, t in (("learning_rate", "1e-4-5e-4"), ("warmup_steps", "500-1500"))]
    assert shown == ["learning_rate 0.0001 to 0.0005 (log)", "warmup_steps 500 to 1500 (integer)"]
    assert str(parse_range("total_rank", "96,128")) == "total_rank one of 96, 128"
