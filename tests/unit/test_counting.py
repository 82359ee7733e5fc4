"""Counts in messages: one matrix, two matrices."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import glora
from glora._counting import PLURALS, counted

THINGS = "|".join((*PLURALS.values(), "(?:step|run|trial|seed|method|model|example|label|score|time|other|token)s"))


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "step", "0 steps"),
        (1, "step", "1 step"),
        (1200, "step", "1,200 steps"),
        (1, "matrix", "1 matrix"),
        (2, "matrix", "2 matrices"),
        (2, "group of examples", "2 groups of examples"),
    ],
)
def test_one_is_singular(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_no_message_counts_by_hand() -> None:
    """ "1 matrices" comes of a plural behind a number that the message did not look at; "1 of 12 matrices" is right."""
    by_hand = []
    for source in sorted(Path(glora.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.replace("%d", "\0")
            by_hand += [
                f"{source.name}:{node.lineno}: {text[max(found.start() - 20, 0) : found.end()]!r}"
                for found in re.finditer(rf"(?<!of )(?<!of the )\0 (?:{THINGS})\b(?! within)", text)
            ]
    assert not by_hand, "\n".join(by_hand)
