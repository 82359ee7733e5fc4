"""docs/support.md says what the tests show, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from integration import test_layer_kinds
from integration.support_cases import SECTIONS, Works, table

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "support.md"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_table_is_that_of_the_cases(section: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (found,) = re.findall(rf"^\| {section} \|.*?\n(?!\|)", text, flags=re.DOTALL | re.MULTILINE)
    assert found == table(section), f"docs/support.md differs from the tests; they say\n\n{table(section)}"


def test_every_case_is_shown_by_a_test_that_exists() -> None:
    for case in (case for cases in SECTIONS.values() for case in cases):
        if isinstance(case, Works) and isinstance(case.shown_by, str):
            assert callable(getattr(test_layer_kinds, case.shown_by, None)), f"{case.thing}: no test {case.shown_by}"
        assert case.outcome == "works" or case.how, f"{case.thing} is refused without a remedy"


def test_no_thing_has_two_lines() -> None:
    things = [case.thing for cases in SECTIONS.values() for case in cases]
    assert sorted(set(things)) == sorted(things)
