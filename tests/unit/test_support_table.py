"""docs/support.md says what the tests show, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from integration.support_table import SECTIONS, table

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "support.md"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_table_is_that_of_the_cases(section: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (found,) = re.findall(rf"^\| {section} \|.*?\n(?!\|)", text, flags=re.DOTALL | re.MULTILINE)
    assert found == table(section), f"docs/support.md differs from the tests; they say\n\n{table(section)}"


def test_every_case_is_shown_by_a_test_that_exists() -> None:
    for case in (case for cases in SECTIONS.values() for case in cases):
        shown_by = getattr(case, "shown_by", None)
        if isinstance(shown_by, str):
            file, _, name = shown_by.partition("::")
            found = re.search(rf"^def {name}\(", (TESTS / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert found, f"{case.thing}: there is no test {shown_by}"
        assert case.outcome == "works" or case.how, f"{case.thing} is {case.outcome}, without a reason or a remedy"


def test_no_thing_has_two_lines() -> None:
    things = [case.thing for cases in SECTIONS.values() for case in cases]
    assert sorted(set(things)) == sorted(things)
