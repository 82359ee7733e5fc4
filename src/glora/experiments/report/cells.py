"""Tables of typed cells: a cell is a value, and each output writes it; a page sorts by the value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from rich import box
from rich.table import Table
from rich.text import Text

from glora.experiments.data.metric import Metric
from glora.experiments.number_format import MISSING, printable, time_unit
from glora.experiments.report.statistics import Estimate, PairedDifference, PairedRatio


class Unit(NamedTuple):
    """Format of the numbers of a quantity."""

    scale: float = 1.0
    decimals: int = 1
    symbol: str = ""
    sign: Literal["+", ""] = ""

    def write(self, value: float) -> str:
        """Return the number without its symbol."""
        return f"{value * self.scale:{self.sign},.{self.decimals}f}"


COUNT = Unit(decimals=0)
RATIO = Unit(decimals=3)
MILLISECONDS = Unit(1000.0, 1, "ms")
SYMBOLS = {"seconds": "s", "minutes": "min", "hours": "h"}


@dataclass(frozen=True)
class Quantity:
    """A number with what is known about it.

    Attributes:
        value: what the cell sorts by, in the same unit in the whole column (seconds, bytes, ...).
        unit: how it is written.
        sd: its standard deviation.
        low, high: its interval.
        before: its value at the start of the run, where it changed.
        single: whether it is from one run, which is said where others have a standard deviation.
        only_interval: whether the interval is written and not the value.
    """

    value: float
    unit: Unit
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    before: float | None = None
    single: bool = False
    only_interval: bool = False

    def __str__(self) -> str:
        """Return `20 → 81.3 ± 0.4 [80.0, 82.1] s`, with the parts that there are."""
        write = self.unit.write
        parts = [] if self.before is None else [write(self.before), "→"]
        parts += [] if self.only_interval else [write(self.value)]
        parts += [] if self.sd is None else ["±", write(self.sd)]
        parts += [] if self.low is None or self.high is None else [f"[{write(self.low)}, {write(self.high)}]"]
        parts += [self.unit.symbol] if self.unit.symbol else []
        return " ".join([*parts, "(n = 1)"] if self.single else parts)


Tone = Literal["good", "bad", "open"]


class Verdict(NamedTuple):
    """A conclusion in words, and the tone that a page may give it."""

    text: str
    tone: Tone = "open"

    def __str__(self) -> str:
        """Return the words."""
        return self.text


Cell: TypeAlias = "str | Quantity | Verdict | None"


@dataclass(frozen=True)
class ReportTable:
    """A table: columns of quantities are aligned right and sort by value, columns of words left.

    Attributes:
        note: how to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def is_words(self, column: int) -> bool:
        """Return True for a column with a cell of words, or with none at all."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return not all(isinstance(cell, Quantity) for cell in cells) or not cells


def metric_unit(metric: Metric) -> Unit:
    """Return the unit of the metric's header: percent with one decimal, or the number as recorded with three."""
    return Unit(metric.scale, 1 if metric.unit else 3)


def difference_cell(metric: Metric, found: PairedDifference | None) -> Cell:
    """Return `+0.52 [-0.10, +1.14]`, in points; without the interval below three seeds."""
    shown = Unit(metric.scale, 2 if metric.unit else 4, sign="+")
    return None if found is None else Quantity(found.mean, shown, low=found.low, high=found.high)


def estimate_cell(found: Estimate | None, unit: Unit) -> Cell:
    """Return mean ± sample standard deviation, or the value with `(n = 1)`."""
    return None if found is None else Quantity(found.mean, unit, sd=found.sd, single=found.sd is None)


def interval_cell(found: PairedRatio | None) -> Cell:
    """Return `[0.995, 1.045]`; missing below three seeds."""
    if found is None or found.low is None:
        return None
    return Quantity(found.low, RATIO, low=found.low, high=found.high, only_interval=True)


def count_cell(after: Estimate | None, before: Estimate | None = None) -> Cell:
    """Return `331,776`, or `331,776 → 390,144` where it changed during the run; with its spread where seeds differ."""
    if after is None:
        return None
    changed = before is not None and not math.isclose(before.mean, after.mean)
    return Quantity(after.mean, COUNT, sd=after.sd or None, before=before.mean if before and changed else None)


def share_cell(share: float | None) -> Cell:
    """Return `100 %`, `130.2 %`, `12,345 %`; with a decimal below 1,000 % where it is not whole."""
    if share is None:
        return None
    whole = share >= 10 or round(100 * share, 1) % 1 == 0
    return Quantity(share, Unit(100.0, 0 if whole else 1, "%"))


def time_cell(found: Estimate | None) -> Cell:
    """Return `123.4 ± 1.2 s`, in minutes or hours where that reads better."""
    if found is None:
        return None
    seconds, name = time_unit(found.mean)
    return Quantity(found.mean, Unit(1 / seconds, 1, SYMBOLS[name]), sd=found.sd)


def memory_cell(found: Estimate | None) -> Cell:
    """Return the mean in GiB, or in MiB below one GiB."""
    if found is None:
        return None
    return Quantity(found.mean, Unit(2**-30, 2, "GiB") if found.mean >= 2**30 else Unit(2**-20, 0, "MiB"))


def cell_text(cell: Cell) -> str:
    """Return what a cell shows."""
    return MISSING if cell is None else printable(str(cell))


def as_markdown(table: ReportTable) -> str:
    """Return the table in GitHub's Markdown, without its title."""
    kinds = ["---" if table.is_words(column) else "---:" for column in range(len(table.columns))]
    rows = [[escape_markdown(cell_text(cell)) for cell in row] for row in table.rows]
    lines: Sequence[Sequence[str]] = [[escape_markdown(name) for name in table.columns], kinds, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_rich(table: ReportTable) -> Table:
    """Return the table for the terminal; as long as there is room, a cell is wrapped between its words."""
    shown = Table(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    rows = [[cell_text(cell).replace("(n = ", "(n=") for cell in row] for row in table.rows]  # one word
    for place, column in enumerate(map(printable, table.columns)):
        words = " ".join([column, *(row[place] for row in rows)]).split()
        side: Literal["left", "right"] = "left" if table.is_words(place) else "right"
        shown.add_column(Text(column), justify=side, overflow="fold", min_width=max(map(len, words), default=1))
    for row in rows:
        shown.add_row(*map(Text, row))
    return shown


def escape_markdown(text: str) -> str:
    """Return a text that cannot end a cell, start a tag, a formula or a link, or become emphasis."""
    escaped = re.sub(r"([\\`*_|<\[$~&]|:(?=//)|(?<=www)\.)", r"\\\1", text)
    return " ".join(printable(escaped).split())


def escape_paragraph(text: str) -> str:
    """Return a text that cannot start a heading, a list or a quotation either."""
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", escape_markdown(text))
