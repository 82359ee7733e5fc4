"""docs/support.md has the rows that tests show, with their outcome, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from integration.adapters.support_cases import ADAPTERS, INITIALISATIONS, LAYERS, MODELS, Case
from integration.adapters.training_cases import CHECKPOINTS, OPTIMIZERS, PROCESSES, TRAINING, TROUBLE, Optimizers, Shown

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = (TESTS.parent / "docs" / "support.md").read_text(encoding="utf-8")
SECTIONS: dict[str, list[Case] | list[Optimizers] | list[Shown]] = {
    "Layers": LAYERS,
    "Adapters": ADAPTERS,
    "Initialisations": INITIALISATIONS,
    "Models": MODELS,
    "Training": TRAINING,
    "Several processes": PROCESSES,
    "Optimizers": OPTIMIZERS,
    "Checkpoints": CHECKPOINTS,
    "Trouble": TROUBLE,
}


@pytest.mark.parametrize("section", SECTIONS)
def test_rows_are_those_of_the_tests(section: str) -> None:
    (table,) = re.findall(
        rf"^\| {section} \| \| notes \|\n\|---\|---\|---\|\n(.*?)^(?!\|)", DOCUMENT + "\n", re.S | re.M
    )
    rows = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in table.splitlines()]
    assert [row[:2] for row in rows] == [(case.thing, case.outcome) for case in SECTIONS[section]]
    for thing, outcome, notes in rows:
        assert outcome == "works" or notes, f"{thing} is {outcome}, without a reason or a fix"


def test_every_test_that_is_named_exists() -> None:
    for case in (case for cases in SECTIONS.values() for case in cases):
        if shown_by := getattr(case, "shown_by", ""):
            file, _, name = shown_by.partition("::")
            text = (TESTS / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", text, flags=re.MULTILINE), f"{case.thing}: there is no test {shown_by}"


def test_no_thing_has_two_rows() -> None:
    things = [case.thing for cases in SECTIONS.values() for case in cases]
    assert sorted(set(things)) == sorted(things)
