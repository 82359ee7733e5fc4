"""Tables in Markdown, and the part of a page that a benchmark writes, between two marks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

END = "<!-- until here -->"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table."""
    return [line(columns), "|---" * len(columns) + "|", *map(line, rows)]


def line(cells: Sequence[Any]) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def with_interval(found: Any, write: Callable[[float], str]) -> str:
    """Return a mean with its 95 % interval, where it has one; empty for None.

    Args:
        found: A `PairedDifference`, or another object with `mean`, `low` and `high`.
        write: Value -> text.
    """
    if found is None:
        return ""
    ends = "" if found.low is None or found.high is None else f" [{write(found.low)}, {write(found.high)}]"
    return write(found.mean) + ends


def percent(log_ratio: float) -> str:
    """Return the relative difference of a log ratio: `+3.1%`."""
    return f"{math.expm1(log_ratio):+.1%}"


def fill(page: str, maker: str, made: str) -> str:
    """Return a page with new text between its marks.

    Args:
        page: The page, which holds `<!-- made by MAKER -->` once and `<!-- until here -->` after it.
        maker: The script that writes the text, as `benchmarks/cost/table.py`.
        made: The text.
    """
    begin = f"<!-- made by {maker} -->\n"
    before, rest = page.split(begin)
    return f"{before}{begin}{made}\n{END}{rest.split(END, 1)[1]}"
