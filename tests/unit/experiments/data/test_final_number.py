"""The number an answer ends with; every case is read off by hand."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from conftest import SHARED_DATA
from glora.experiments.data.final_number import find_final_number, same_final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 * 3 = 18 eggs.\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### 1,234,567", "1234567"),
        ("#### $18.50", "18.50"),
        ("#### 18.", "18"),
        ("#### -5", "-5"),
        ("#### -$5", "-5"),
        ("#### $-5", "-5"),
        ("#### −5", "-5"),  # the typographer's minus
        ("#### .5", "0.5"),
        ("#### 50%", "50"),
        ("####42", "42"),
        ("#### 12 eggs for 3 people", "12"),
        ("#### 7\nHow many are 2 and 2? #### 4", "7"),  # a model that does not stop begins with a new question
        ("I think that 3 + 4 is 7.", "7"),
        ("She pays $1,000 for 2, so that it costs $500.", "500"),
        ("The temperature falls to -3.", "-3"),
        ("10-3", "3"),
        ("10 - 3", "3"),
        ("from 2-4", "4"),
        ("x=-4", "-4"),
        ("(-4)", "-4"),
        ("two lists, 1,2", "2"),
        ("1,2345", "2345"),
        ("1/2", "2"),
        ("007", "7"),
        ("3.140", "3.14"),
    ],
)
def test_the_final_number(text: str, number: str) -> None:
    assert find_final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "####", "18 eggs\n####", "18\n#### eighteen"])
def test_no_number_is_no_answer(text: str) -> None:
    assert find_final_number(text) is None
    assert not same_final_number(text, "#### 18")


def test_numbers_are_compared_and_not_texts() -> None:
    assert same_final_number("so $1,000.00.", "#### 1000")
    assert same_final_number("#### 18.0", "#### 18")
    assert not same_final_number("#### 180", "#### 18")
    assert not same_final_number("#### -18", "#### 18")
    assert not same_final_number("#### 18.5", "#### 18")
    assert not same_final_number("18 of 20", "#### 18")


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_of_the_real_gsm8k(split: str) -> None:
    """Against the rule of its authors: what stands behind `#### `, without commas."""
    path = SHARED_DATA / "gsm8k" / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip("the real GSM8K is not here")
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == {"train": 7473, "test": 1319}[split]
    for answer in answers:
        assert find_final_number(answer) == Decimal(answer.rpartition("####")[2].strip().replace(",", ""))
