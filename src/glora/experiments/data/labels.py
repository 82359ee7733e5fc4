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
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from glora.experiments.data.answers import SCORINGS
from glora.experiments.data.table_files import INTEGER, NUMBER, Table
from glora.experiments.data.task import DataError, Examples, Task
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


class LabelColumn:
    """A training file's labels.

    Attributes:
        names: the classes in the order of their numbers; None for a regression.
    """

    def __init__(self, table: Table, column: str) -> None:
        """Decide between classes and a regression.

        Raises:
            DataError: a label is empty or of an odd type; some labels contradict the others; classes look alike, or there are
                too few or too many. Names the lines.
        """
        self._table, self._column, self._values = table, column, table.column(column)
        kinds = [self._kind(row, value) for row, value in enumerate(self._values)]
        usual, odd = _usual_and_odd(kinds)
        if odd:
            raise self._contradiction(odd, f"is of the type {kinds[odd[0]]}, the others are {usual}; write all alike")
        self.names = None if self._are_decimal_numbers(usual) else self._classes()

    def read(self, table: Table) -> list[int] | list[float]:
        """Return class numbers, or numbers, of this or the validation file.

        Raises:
            DataError: a class that does not occur in training, or a label that is not a number.
        """
        values = table.column(self._column)
        if self.names is None:
            scores = [_finite(value) for value in values]
            if None in scores:
                row = scores.index(None)
                raise DataError(
                    f"{table.where(row)}: the label {values[row]!r:.60} is not a number, which a regression needs."
                )
            return scores  # type: ignore[return-value]
        numbers = {name: i for i, name in enumerate(self.names)}
        for row, value in enumerate(map(str, values)):
            if value not in numbers:
                shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
                raise DataError(
                    f"{table.where(row)}: the label {value!r} does not occur in {Path(self._table.path).name}{_codes(value)}"
                    f"{did_you_mean(value, self.names)}; the labels are {shown}."
                )
        return [numbers[str(value)] for value in values]

    def _kind(self, row: int, value: Any) -> str:
        if value is None or _is_blank(value):
            raise DataError(f"{self._table.where(row)}: the label column {self._column!r} is empty.")
        if type(value) not in TYPES:
            raise DataError(
                f"{self._table.where(row)}: the label {value!r:.60} is a {type(value).__name__}; labels are all strings, all "
                "integers, or all decimal numbers."
            )
        return TYPES[type(value)]

    def _are_decimal_numbers(self, kind: str) -> bool:
        """Return whether the labels make a regression; False for classes.

        Raises:
            DataError: most are numbers and others are not, or most are integers and others are not.
        """
        if kind == "true or false":
            return False
        values, count = self._values, len(self._values)
        others = [row for row, value in enumerate(values) if _finite(value) is None and not _is_integer(value)]
        if others and (kind == "number" or 2 * len(others) < count):
            fix = f"is not a number ({count - len(others)} others are); correct or remove the line"
            raise self._contradiction(others, fix)
        if others:
            return False
        usual, odd = _usual_and_odd(["an integer" if _is_integer(value) else "a decimal number" for value in values])
        decimals = len(odd) if usual == "an integer" else count - len(odd)
        all_whole = all(_is_integer(value) or float(value).is_integer() for value in values)
        if odd and (decimals < MIN_DECIMAL_SHARE * count or all_whole):
            fix = "write all as integers (classes) or all with a point (regression)"
            raise self._contradiction(odd, f"is not {usual} ({count - len(odd)} others are); {fix}")
        return decimals > 0

    def _classes(self) -> tuple[str, ...]:
        table, count = self._table, len(self._values)
        counts = Counter(map(str, self._values))
        if len(counts) < 2:
            raise DataError(
                f"{table.path}: every row has the label {next(iter(counts))!r} in column {self._column!r}; give two classes."
            )
        if len(counts) > MAX_CLASSES and 2 * len(counts) > count:
            raise DataError(
                f"{table.path}: column {self._column!r} has {len(counts)} different labels in {count} rows, too many for "
                "classes. For a regression every label must be a decimal number (3.0, not 3)."
            )
        if all(ALMOST_NUMBER.fullmatch(name.strip()) for name in counts):
            raise DataError(
                f"{table.where(0)}: the label {self._values[0]!r:.60} is nearly a number, as all others are; write numbers "
                "with a decimal point, without signs for thousands and percent."
            )
        self._check_spellings(counts)
        return tuple(sorted(counts, key=Decimal if all(map(INTEGER.fullmatch, counts)) else None))

    def _check_spellings(self, counts: Mapping[str, int]) -> None:
        for form, difference in ((_looks, "space, case or Unicode form"), (_keyboard_form, "letters that look alike")):
            alike: dict[str, list[str]] = {}
            for name in counts:
                alike.setdefault(form(name), []).append(name)
            if pair := next(((looks, names) for looks, names in alike.items() if len(names) > 1), None):
                usual, odd = sorted(pair[1], key=lambda name: (-counts[name], name))[:2]
                rows = [row for row, value in enumerate(self._values) if str(value) == odd]
                how = "is the same integer as {}" if _is_integer(pair[0]) else f"differs from {{}} only by {difference}"
                raise self._contradiction(rows, f"{how.format(repr(usual))}{_codes(odd, usual)}; use one spelling")

    def _contradiction(self, rows: Sequence[int], reason: str) -> DataError:
        """Return the error for labels that contradict the others."""
        first, *rest = rows
        more = ", ".join(str(self._table.lines[row]) for row in rest[: SHOWN_LINES - 1])
        if len(rest) >= SHOWN_LINES:
            more += f" and {len(rest) - SHOWN_LINES + 1} more"
        also = f" (also {self._table.unit} {more})" if more else ""
        return DataError(f"{self._table.where(first)}: the label {self._values[first]!r:.60}{also} {reason}.")


def describe(task: Task, examples: Examples, table: Table | None = None) -> str:
    """Return in one line what a task was taken for, by its training examples.

    Args:
        task: its description.
        examples: the training examples.
        table: their file, whose lines are named for classes that occur once.
    """
    if task.kind == "generation":
        return (
            f"written answers, scored by {SCORINGS[task.scoring].part}" if task.scoring else "written answers, by loss"
        )
    labels = examples.columns["label"]
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
    places = [f" ({table.unit} {table.lines[labels.index(i)]})" if table else "" for i in once[:SHOWN_LINES]]
    odd = [f"{names[i]!r:.40}{place}" for i, place in zip(once, places)]
    rest = [f"{len(once) - SHOWN_LINES} more"] if len(once) > SHOWN_LINES else []
    return f"classification, {len(names)} classes: {', '.join(shown + more)}" + (
        f"; only once: {', '.join(odd + rest)}" if once else ""
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


def _keyboard_form(name: str) -> str:
    """Return a label as `_looks` does, with the letters of a keyboard for those that are drawn like them."""
    return _looks(unicodedata.normalize("NFKD", name).translate(LOOK_ALIKES))


def _usual_and_odd(kinds: Sequence[str]) -> tuple[str, list[int]]:
    """Return the most frequent kind, and the rows of the others."""
    counts = Counter(kinds)
    usual = max(sorted(counts), key=lambda kind: counts[kind])
    return usual, [row for row, kind in enumerate(kinds) if kind != usual]


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
