r"""The content of \boxed{}, and which two are the same; cases by hand, most after the examples of MATH's own code."""

from __future__ import annotations

import pytest

from glora.experiments.data.answer_scoring import SCORINGS
from glora.experiments.data.boxed_answer import find_boxed, normalise, same_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so $x = \boxed{5}$.", "5"),
        (r"\boxed{1} and then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ 1 \right\}} or {so}", r"\left\{ 1 \right\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # an escaped brace opens nothing
        (r"\fbox{7}", "7"),
        (r"\boxed{a} is \fbox{b}", "b"),
        (r"\boxed 5$", "5"),
        (r"\boxed {6}", "6"),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_box(text: str, content: str) -> None:
    assert find_boxed(text) == content


@pytest.mark.parametrize("text", ["5", r"\boxed{5", r"\boxed{\frac{1}{2}", r"\boxedin{5}", r"\boxed"])
def test_no_box_is_no_answer(text: str) -> None:
    assert find_boxed(text) is None
    assert not same_boxed(text, r"\boxed{5}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac12", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\frac{1}2", r"\frac{1}{2}"),
        (r"\tfrac{1}{2}", r"\frac{1}{2}"),
        (r"\dfrac{x+1}{y}", r"\frac{x+1}{y}"),
        (r"\frac{\sqrt3}2", r"\frac{\sqrt{3}}{2}"),
        (r"\frac{\frac12}3", r"\frac{\frac{1}{2}}{3}"),
        ("1/2", r"\frac{1}{2}"),
        ("-3/4", r"-\frac{3}{4}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", "0.5"),
        ("{.25}", "{0.25}"),
        (r"2\sqrt 3", r"2\sqrt{3}"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"\left[0,1\right)", "[0,1)"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"50\%", "50"),
        ("50%", "50"),
        (r"\$18.90", "18.90"),
        (r"5 \text{ cm}", "5"),
        (r"5\text{ cm}^2", "5"),
        (r"15\mbox{ cm}^2", "15"),
        (r"12 \text{ square inches}", "12"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\text{(A)}", "(A)"),
        ("x = 5", "5"),
        ("x=5", "5"),
        (r"10,\!000", "10000"),
        ("10,000", "10000"),
        ("1{,}000,000", "1000000"),
        (r"3\cdot 4", r"3\cdot4"),
        (r"x \in [1, 2]", r"x\in[1,2]"),
        (r"3\,x", "3x"),
        ("5.", "5"),
        (" 5\n", "5"),
    ],
)
def test_two_ways_to_write_the_same(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)
    assert same_boxed(rf"so \boxed{{{one}}}", rf"\boxed{{{other}}}")
    assert normalise(normalise(one)) == normalise(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5", "6"),
        ("12", "1,2"),  # a list of two
        ("-5", "5"),
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        (r"\frac12", r"\frac{12}{}"),
        ("x+1", "1+x"),  # nothing is calculated
        ("0.25", "1/4"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 12 \end{pmatrix}"),
        ("abc = 5", "5"),
        (r"\leftarrow", "arrow"),
        (r"\text{Evelyn}", r"\text{Evans}"),
        (r"\text{ cm}", r"\text{ m}"),
        ("1.5", "15"),
        ("x=5", "y=6"),
    ],
)
def test_what_differs_stays_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_a_scoring_says_what_it_looks_for() -> None:
    boxed = SCORINGS["boxed"]
    assert boxed.matches(r"I get \boxed{\frac12}", r"\boxed{\frac{1}{2}}")
    assert not boxed.matches("I get 1/2", r"\boxed{\frac{1}{2}}")
    assert boxed.extract("nothing") is None
    assert SCORINGS["final_number"].matches("so 1,000", "#### 1000")
