"""Sections of docstrings list one name a line, as readers and documentation tools expect; re-wrapping runs them together."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src" / "glora"
ENTRY = re.compile(r" {4}[\w*`.]+(, [\w*`.]+)*:(\s|$)")


def errors(docstring: str) -> Iterator[str]:
    """Lines of a section that neither begin with a name nor continue, further in, what a name began."""
    listing = False
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Attributes|Raises):", line):
            listing = True
        elif listing and line:
            listing = line.startswith("    ")
            if listing and not line.startswith(" " * 8) and not ENTRY.match(line):
                yield line


@pytest.mark.parametrize(
    ("body", "number"),
    [
        ("    model: What is\n        trained.\n    steps: How many.", 0),
        ("    model: What is\n    trained.", 1),
        ("    model: What is trained. optimizer:\n    The one that\n    trains it. config: How.", 2),
    ],
)
def test_a_section_that_was_run_together_is_found(body: str, number: int) -> None:
    assert len(list(errors(f"Does it.\n\nArgs:\n{body}\n\nReturns:\n    It."))) == number


def test_every_section_lists_its_names() -> None:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    wrong, sections = [], 0
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (docstring := ast.get_docstring(node)):
                sections += "Args:" in docstring
                wrong += [f"{path.name}: {line.strip()}" for line in errors(docstring)]
    assert not wrong
    assert sections > 40
