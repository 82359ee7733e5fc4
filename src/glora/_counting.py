"""A number of things in a message: one step, two steps."""

from __future__ import annotations

PLURALS = {"batch": "batches", "group of examples": "groups of examples", "matrix": "matrices", "study": "studies"}


def counted(number: int, noun: str) -> str:
    """`1 matrix`, `2 matrices`, `1,200 steps`."""
    return f"{number:,} {noun if number == 1 else PLURALS.get(noun, noun + 's')}"
