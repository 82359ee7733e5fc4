"""The labels of custom data: classes or numbers, decided by the whole column and never by an odd line.

Integers and texts are classes; decimal numbers (4.5, 3.0) make a regression. A column that is nearly numeric, and classes that
look alike, are errors that name the lines. The result is described in one line, for the user to check.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from glora.experiments.data.answers import SCORINGS
from glora.experiments.data.table_files import INTEGER, NUMBER, Table
from glora.experiments.data.task import DataError, Examples, Rows, Task
from glora.messages import did_you_mean, pluralize

MAX_CLASSES = 50
"""More classes than this, and more than half as many as examples, are a mistake."""
MIN_DECIMAL_SHARE = 0.1
"""Fewer decimal numbers than this among integers are a mistake, not a regression."""
MAX_DIGITS = 400
"""Python refuses to read integers of more than 4,300 digits."""
ALMOST_NUMBER = re.compile(
    r"[+-]?\d+(?:[,'\u2019 ]\d+)*(?:[.,]\d+)?\s*%|[+-]?\d+(?:[,'\u2019 ]\d+)+(?:\.\d+)?|[+-]?\d*,\d+"
)
"""A number with a decimal comma, signs for thousands, or a percent sign."""
LOOK_ALIKES = str.maketrans(
    "АВЕЅІЈКМНОРСТУҮХаесіјкорԛѕԝуүхһԁӏ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧαικνορυχ" + "ɑɡı‐‒–—―−‘’ʼ",
    "ABESIJKMHOPCTYYXaecijkopqswyyxhdl" + "ABEZHIKMNOPTYXaikvopux" + "agi------'''",
)
"""Cyrillic and Greek letters, and signs that word processors put in, which are drawn as those of a keyboard."""
SHOWN_CLASSES, SHOWN_LINES = 8, 3
TYPES = {bool: "true or false", int: "number", float: "number", Decimal: "number", str: "text"}

Place = Callable[[int], str]
"""Row -> its place in the file, such as `line 7`."""


@dataclass(frozen=True)
class LabelColumn:
    """A training file's labels.

    Attributes:
        table: the training file.
        column: name of the column.
        names: the classes in the order of their numbers; None for a regression.
    """

    table: Table
    column: str
    names: tuple[str, ...] | None

    @classmethod
    def of(cls, table: Table, column: str) -> LabelColumn:
        """Decide between classes and a regression.

        Raises:
            DataError: a label is empty or of an odd type; some labels contradict the others; classes look alike, or there are
                too few or too many. Names the lines.
        """
        values = table.column(column)
        empty = next((row for row, value in enumerate(values) if value is None or _is_blank(value)), None)
        if empty is not None:
            raise DataError(f"{table.where(empty)}: the label column {column!r} is empty.")
        kinds = [_kind(table, row, value) for row, value in enumerate(values)]
        usual, odd = _usual_and_odd(kinds)
        if odd:
            raise _contradiction(
                table, values, odd, f"is of the type {kinds[odd[0]]}, the others are {usual}; write all alike"
            )
        names = None if _are_decimal_numbers(table, values, usual) else _classes(table, column, values)
        return cls(table, column, names)

    def read(self, table: Table) -> list[int] | list[float]:
        """Return class numbers, or numbers, of this or the validation file.

        Raises:
            DataError: a class that does not occur in training, or a label that is not a number.
        """
        values = table.column(self.column)
        if self.names is None:
            return [_number(table, row, value) for row, value in enumerate(values)]
        numbers = {name: i for i, name in enumerate(self.names)}
        for row, value in enumerate(values):
            if str(value) not in numbers:
                hint = _codes(str(value)) + did_you_mean(str(value), self.names)
                shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
                raise DataError(
                    f"{table.where(row)}: the label {value!r} does not occur in {self.table.path.name}{hint}; the labels are "
                    f"{shown}."
                )
        return [numbers[str(value)] for value in values]


def describe(task: Task, examples: Examples, place: Place | None = None) -> str:
    """Return in one line what a task was taken for, by its training examples.

    Args:
        task: its description.
        examples: the training examples.
        place: the place of an example in its file, named for classes that occur once.
    """
    if task.kind == "generation":
        return (
            f"written answers, scored by {SCORINGS[task.scoring].part}" if task.scoring else "written answers, by loss"
        )
    assert isinstance(examples, Rows)
    labels = examples.labels
    if task.label_names is None:
        return (
            f"regression, {min(labels):g} to {max(labels):g} ({pluralize(len(set(labels)), 'different value')} in "
            f"{pluralize(len(labels), 'example')})"
        )
    counts = Counter(labels)
    names = task.label_names
    shown = [f"{name!r:.40} ({counts[i]})" for i, name in enumerate(names[:SHOWN_CLASSES])]
    more = [f"{len(names) - SHOWN_CLASSES} more"] if len(names) > SHOWN_CLASSES else []
    once = [i for i in range(len(names)) if counts[i] == 1]
    odd = [f"{names[i]!r:.40}{f' ({place(labels.index(i))})' if place else ''}" for i in once[:SHOWN_LINES]]
    rest = [f"{len(once) - SHOWN_LINES} more"] if len(once) > SHOWN_LINES else []
    return f"classification, {len(names)} classes: {', '.join(shown + more)}" + (
        f"; only once: {', '.join(odd + rest)}" if once else ""
    )


def _kind(table: Table, row: int, value: Any) -> str:
    if type(value) not in TYPES:
        raise DataError(
            f"{table.where(row)}: the label {value!r:.60} is a {type(value).__name__}; labels are all strings, all integers, "
            "or all decimal numbers."
        )
    return TYPES[type(value)]


def _are_decimal_numbers(table: Table, values: Sequence[Any], kind: str) -> bool:
    """Return whether the labels make a regression; False for classes.

    Raises:
        DataError: most are numbers and others are not, or most are integers and others are not.
    """
    if kind == "true or false":
        return False
    others = [row for row, value in enumerate(values) if _finite(value) is None and not _is_integer(value)]
    if others and (kind == "number" or 2 * len(others) < len(values)):
        raise _contradiction(
            table,
            values,
            others,
            f"is not a number ({len(values) - len(others)} others are); correct or remove the line",
        )
    if others:
        return False
    usual, odd = _usual_and_odd(["an integer" if _is_integer(value) else "a decimal number" for value in values])
    decimals = len(odd) if usual == "an integer" else len(values) - len(odd)
    if odd and (
        decimals < MIN_DECIMAL_SHARE * len(values)
        or all(_is_integer(value) or float(value).is_integer() for value in values)
    ):
        fix = "write all as integers (classes) or all with a point (regression)"
        raise _contradiction(table, values, odd, f"is not {usual} ({len(values) - len(odd)} others are); {fix}")
    return decimals > 0


def _classes(table: Table, column: str, values: Sequence[Any]) -> tuple[str, ...]:
    counts = Counter(map(str, values))
    if len(counts) < 2:
        raise DataError(
            f"{table.path}: every row has the label {next(iter(counts))!r} in column {column!r}; give two classes."
        )
    if len(counts) > MAX_CLASSES and 2 * len(counts) > len(values):
        raise DataError(
            f"{table.path}: column {column!r} has {len(counts)} different labels in {len(values)} rows, too many for "
            "classes. For a regression every label must be a decimal number (3.0, not 3)."
        )
    numbers = [name for name in counts if ALMOST_NUMBER.fullmatch(name.strip())]
    if len(numbers) == len(counts):
        row = next(row for row, value in enumerate(values) if str(value) in numbers)
        raise DataError(
            f"{table.where(row)}: the label {values[row]!r:.60} is nearly a number, as all others are; write numbers with a "
            "decimal point, without signs for thousands and percent."
        )
    _refuse_alike(table, values, counts)
    if all(INTEGER.fullmatch(name) for name in counts):
        return tuple(sorted(counts, key=Decimal))
    return tuple(sorted(counts))


def _refuse_alike(table: Table, values: Sequence[Any], counts: Mapping[str, int]) -> None:
    for form, difference in ((_looks, "space, case or Unicode form"), (_drawn, "letters that look alike")):
        alike: dict[str, list[str]] = {}
        for name in counts:
            alike.setdefault(form(name), []).append(name)
        if pair := next(((looks, names) for looks, names in alike.items() if len(names) > 1), None):
            usual, odd = sorted(pair[1], key=lambda name: (-counts[name], name))[:2]
            rows = [row for row, value in enumerate(values) if str(value) == odd]
            how = "is the same integer as {}" if _is_integer(pair[0]) else f"differs from {{}} only by {difference}"
            raise _contradiction(
                table, values, rows, f"{how.format(repr(usual))}{_codes(odd, usual)}; use one spelling"
            )


def _codes(*names: str) -> str:
    """Return the names with their characters by number; nothing if all are ASCII."""
    return "" if "".join(names).isascii() else f" ({', '.join(map(ascii, names))})"


def _looks(name: str) -> str:
    """Return a label without what a reader does not see: spaces, case, Unicode forms, invisible characters.

    Of an integer that is its value: 1 is also written 01, +1 and with the digits of another script.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    if len(folded) <= MAX_DIGITS and re.fullmatch(r"\s*[+-]?\d+\s*", folded):
        return str(int(folded))
    return "".join(c for c in folded if unicodedata.category(c)[0] not in "CZ" and not "\ufe00" <= c <= "\ufe0f")


def _drawn(name: str) -> str:
    """Return a label as `_looks` does, with the letters of a keyboard for those that are drawn like them."""
    return _looks(unicodedata.normalize("NFKD", name).translate(LOOK_ALIKES))


def _usual_and_odd(kinds: Sequence[str]) -> tuple[str, list[int]]:
    """Return the most frequent kind, and the rows of the others."""
    counts = Counter(kinds)
    usual = max(sorted(counts), key=lambda kind: counts[kind])
    return usual, [row for row, kind in enumerate(kinds) if kind != usual]


def _contradiction(table: Table, values: Sequence[Any], rows: Sequence[int], reason: str) -> DataError:
    """Return the error for labels that contradict the others."""
    first, *rest = rows
    more = ", ".join(str(table.lines[row]) for row in rest[: SHOWN_LINES - 1])
    if len(rest) >= SHOWN_LINES:
        more += f" and {len(rest) - SHOWN_LINES + 1} more"
    also = f" (also {table.unit} {more})" if more else ""
    return DataError(f"{table.where(first)}: the label {values[first]!r:.60}{also} {reason}.")


def _number(table: Table, row: int, value: Any) -> float:
    number = _finite(value)
    if number is None:
        raise DataError(f"{table.where(row)}: the label {value!r:.60} is not a number, which a regression needs.")
    return number


def _finite(value: Any) -> float | None:
    """Return a number, as text or not, that 32 bits can hold; None for anything else."""
    text = str(value).strip()
    if type(value) not in TYPES or isinstance(value, bool) or not NUMBER.fullmatch(text):
        return None
    return float(text) if math.isfinite(array("f", [float(text)])[0]) else None


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) or INTEGER.fullmatch(str(value).strip()) is not None


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not (value.isascii() and value.strip()) and not _looks(value)
