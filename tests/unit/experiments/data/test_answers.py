r"""The scored part of an answer and when two are the same; cases by hand, many after the examples of MATH's own code."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from conftest import SHARED_DATA
from glora.experiments.data.answers import SCORINGS, find_boxed, find_final_number, find_scoring, normalize

same_number, same_box = SCORINGS["final_number"].matches, SCORINGS["boxed"].matches


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6 * 3 = 18 eggs.\n#### 18", "18"), ("#### 1,234", "1234"), ("#### 1,234,567", "1234567"),
        ("#### $18.50", "18.50"), ("#### 18.", "18"), ("#### -5", "-5"), ("#### -$5", "-5"), ("#### $-5", "-5"),
        ("#### −5", "-5"),  # the typographer's minus
        ("#### .5", "0.5"), ("#### 50%", "50"), ("####42", "42"), ("#### 12 eggs for 3 people", "12"),
        ("#### 7\nHow many are 2 and 2? #### 4", "7"),  # a model that does not stop begins with a new question
        ("I think that 3 + 4 is 7.", "7"), ("She pays $1,000 for 2, so that it costs $500.", "500"),
        ("The temperature falls to -3.", "-3"), ("10-3", "3"), ("10 - 3", "3"), ("from 2-4", "4"), ("x=-4", "-4"),
        ("(-4)", "-4"), ("two lists, 1,2", "2"), ("1,2345", "2345"), ("1/2", "2"), ("007", "7"), ("3.140", "3.14"),
    ],
)  # fmt: skip
def test_the_final_number(text: str, number: str) -> None:
    assert find_final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "####", "18 eggs\n####", "18\n#### eighteen"])
def test_no_number_is_no_answer(text: str) -> None:
    assert find_final_number(text) is None
    assert not same_number(text, "#### 18")


def test_numbers_are_compared_and_not_texts() -> None:
    assert same_number("so $1,000.00.", "#### 1000")
    assert same_number("#### 18.0", "#### 18")
    for wrong in ("#### 180", "#### -18", "#### 18.5", "18 of 20"):
        assert not same_number(wrong, "#### 18")


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_answer_of_the_real_gsm8k(split: str, count: int) -> None:
    """Against the rule of its authors: what follows `#### `, without commas."""
    path = SHARED_DATA / "gsm8k" / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip("the real GSM8K is not here")
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == count
    for answer in answers:
        assert find_final_number(answer) == Decimal(answer.rpartition("####")[2].strip().replace(",", ""))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so $x = \boxed{5}$.", "5"), (r"\boxed{1} and then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"), (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right\}} or {so}", r"\left\{ 1 \right\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # an escaped brace opens nothing
        (r"\fbox{7}", "7"), (r"\boxed{a} is \fbox{b}", "b"), (r"\boxed 5$", "5"), (r"\boxed {6}", "6"),
        (r"\boxed{}", ""),
    ],
)  # fmt: skip
def test_the_last_box(text: str, content: str) -> None:
    assert find_boxed(text) == content


@pytest.mark.parametrize("text", ["5", r"\boxed{5", r"\boxed{\frac{1}{2}", r"\boxedin{5}", r"\boxed"])
def test_no_box_is_no_answer(text: str) -> None:
    assert find_boxed(text) is None
    assert not same_box(text, r"\boxed{5}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac12", r"\frac{1}{2}"), (r"\frac1{72}", r"\frac{1}{72}"), (r"\frac{1}2", r"\frac{1}{2}"),
        (r"\tfrac{1}{2}", r"\frac{1}{2}"), (r"\dfrac{x+1}{y}", r"\frac{x+1}{y}"),
        (r"\frac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"), (r"\frac{\frac12}3", r"\frac{\frac{1}{2}}{3}"),
        ("1/2", r"\frac{1}{2}"), ("-3/4", r"-\frac{3}{4}"), ("0.5", r"\frac{1}{2}"), (".5", "0.5"),
        ("{.25}", "{0.25}"), (r"2\sqrt 3", r"2\sqrt{3}"), (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"\left[0,1\right)", "[0,1)"), (r"90^\circ", "90"), (r"90^{\circ}", "90"), (r"50\%", "50"), ("50%", "50"),
        (r"\$18.90", "18.90"), (r"5 \text{ cm}", "5"), (r"5\text{ cm}^2", "5"), (r"15\mbox{ cm}^2", "15"),
        (r"12 \text{ square inches}", "12"), (r"\text{Evelyn}", "Evelyn"), (r"\text{(A)}", "(A)"), ("x = 5", "5"),
        ("x=5", "5"), (r"10,\!000", "10000"), ("10,000", "10000"), ("1{,}000,000", "1000000"),
        (r"3\cdot 4", r"3\cdot4"), (r"x \in [1, 2]", r"x\in[1,2]"), (r"3\,x", "3x"), ("5.", "5"), (" 5\n", "5"),
    ],
)  # fmt: skip
def test_two_ways_to_write_the_same(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)
    assert same_box(rf"so \boxed{{{one}}}", rf"\boxed{{{other}}}")
    assert normalize(normalize(one)) == normalize(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5", "6"),
        ("12", "1,2"),  # a list of two
        ("-5", "5"), (r"\frac{1}{2}", r"\frac{2}{1}"), (r"\frac12", r"\frac{12}{}"),
        ("x+1", "1+x"),  # nothing is calculated
        ("0.25", "1/4"), (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 12 \end{pmatrix}"),
        ("abc = 5", "5"), (r"\leftarrow", "arrow"), (r"\text{Evelyn}", r"\text{Evans}"),
        (r"\text{ cm}", r"\text{ m}"), ("1.5", "15"), ("x=5", "y=6"),
    ],
)  # fmt: skip
def test_what_differs_stays_different(one: str, other: str) -> None:
    assert normalize(one) != normalize(other)


def test_custom_answers_are_scored_by_the_part_that_all_have() -> None:
    assert find_scoring(["so #### 1", "#### 2"]) == ("final_number", [])
    assert find_scoring(["so 1", "#### 2"]) == (None, [])
    assert find_scoring([r"\boxed{1}", r"\fbox{2}"]) == ("boxed", [])
    assert find_scoring(["#### 1"] * 5 + ["#### none"] + ["#### 2"] * 5) == ("final_number", [5])
