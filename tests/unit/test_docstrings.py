"""Docstrings say what a thing is or does, and their sections list one name a line, as documentation tools expect."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "glora"
KINDS = (ast.Module, ast.ClassDef, ast.FunctionDef)
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
    wrong, sections = [], 0
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, KINDS) and (docstring := ast.get_docstring(node)):
                sections += "Args:" in docstring
                wrong += [f"{path.name}: {line.strip()}" for line in errors(docstring)]
    assert not wrong
    assert sections > 40


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks", "examples"])
def test_docstrings_begin_with_an_imperative_or_a_noun(folder: str) -> None:
    docstrings = [
        (path.name, docstring.splitlines()[0])
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, KINDS) and (docstring := ast.get_docstring(node))
    ]
    assert docstrings
    assert not [
        d
        for d in docstrings
        if re.match(r"(What|Whether|How|Of|Those|Which|Where|Why|That|With|From|On|In|Who)\b", d[1])
    ]
