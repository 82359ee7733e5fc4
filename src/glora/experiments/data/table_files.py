"""Tables from CSV, TSV, JSONL and Parquet files that remember which line each row came from.

`datasets` reads these files too, but its errors name neither the file nor the line, it takes a quotation mark in a
TSV file for a quoted field (GLUE's files are full of single ones), and it copies everything into a cache.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.data.task import DataError, DataNotFoundError

MISSING = object()
"""What a row holds where a JSON object lacks a field that other rows have."""

INTEGER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """Rows of a data file."""

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    lines: Sequence[int]
    """Where each row ends: line in the file; in a Parquet file the row's number, from 1."""
    typed: bool
    """Whether values have types of their own (JSONL, Parquet) or are text throughout (CSV, TSV)."""
    unit: str = "line"

    def where(self, row: int) -> str:
        """Write `file, line n`, as errors begin."""
        return f"{self.path}, {self.unit} {self.lines[row]}"

    def column(self, name: str) -> list[Any]:
        """All values of one column.

        Raises:
            DataError: there is no such column, or a row lacks it.
        """
        if name not in self.columns:
            near = difflib.get_close_matches(name, self.columns, n=3, cutoff=0.5)
            raise DataError(
                f"{self.path}: there is no column {name!r}."
                + (f" Nearest: {', '.join(near)}." if near else "")
                + f" The file has: {', '.join(self.columns)}."
            )
        index = self.columns.index(name)
        values = [row[index] for row in self.rows]
        if MISSING in values:
            raise DataError(f"{self.where(values.index(MISSING))}: there is no field {name!r}.")
        return values


def read_table(path: Path) -> Table:
    """Read a data file whose columns are named, in the format its suffix tells.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: the suffix is unknown, the file has no row, or a line is malformed.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: cannot tell the format from the suffix {path.suffix!r}; known: {', '.join(READERS)}.")
    if not path.is_file():
        raise DataNotFoundError(f"there is no data file {str(path)!r}.")
    return reader(path)


def read_tsv(
    path: Path,
    *,
    header: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    short_rows_skipped: int = 0,
) -> Table:
    r"""Read tab-separated values: one line a row, quotation marks mean themselves (QUOTE_NONE), `\r\n` is accepted.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        header: names of the columns, if the file's first line does not hold them.
        keep: columns to keep; by default all.
        short_rows_skipped: leave out up to so many rows with too few fields.

    Raises:
        DataError: a line with the wrong number of fields, a column of `keep` that is not there, no row.
    """
    lines = _text_lines(path)
    if header is None:
        names = tuple(next(lines, (0, ""))[1].split("\t"))
        _check_header(path, names)
    else:
        names = tuple(header)
    kept = names if keep is None else tuple(keep)
    absent = [name for name in kept if name not in names]
    if absent:
        raise DataError(
            f"{path}, line 1: expected the columns {', '.join(kept)}; found {', '.join(names)}. "
            f"Missing: {', '.join(absent)}."
        )
    indices = [names.index(name) for name in kept]
    rows, numbers, short_rows = [], [], 0
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(names):
            if len(fields) < len(names) and short_rows < short_rows_skipped:
                short_rows += 1
                continue
            raise _wrong_field_count(f"{path}, line {number}", fields, names)
        rows.append(tuple(fields[i] for i in indices))
        numbers.append(number)
    return _table(path, kept, rows, numbers, typed=False)


def read_csv(path: Path) -> Table:
    """Read comma-separated values with a header, quoted as RFC 4180 has it; a quoted field may span lines.

    Raises:
        DataError: a line with the wrong number of fields or bad quoting, no row.
    """
    rows, numbers = [], []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            names = tuple(next(reader, ()))
            _check_header(path, names)
            for fields in reader:
                if not fields:
                    continue  # an empty line
                if len(fields) != len(names):
                    raise _wrong_field_count(f"{path}, line {reader.line_num}", fields, names)
                rows.append(tuple(fields))
                numbers.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: malformed CSV: {error}.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, after line {reader.line_num}: not UTF-8 ({error.reason}).") from error
    return _table(path, names, rows, numbers, typed=False)


def read_jsonl(path: Path) -> Table:
    """Read one JSON object a line.

    Raises:
        DataError: a line that is no JSON object, no row.
    """
    objects, numbers = [], []
    for number, line in _text_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}, column {error.colno}: not JSON: {error.msg}.") from error
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, line {number}: expected one JSON object a line, such as "
                f'{{"sentence": "...", "label": 1}}; found {line[:40]!r}.'
            )
        objects.append(value)
        numbers.append(number)
    names = tuple(dict.fromkeys(name for value in objects for name in value))
    rows = [tuple(value.get(name, MISSING) for name in names) for value in objects]
    return _table(path, names, rows, numbers, typed=True)


def read_parquet(path: Path) -> Table:
    """Read a Parquet file.

    Raises:
        DataError: it is no Parquet file, or has no row.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        content = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from error
    rows = list(zip(*(column.to_pylist() for column in content.columns)))
    return _table(path, tuple(content.column_names), rows, range(1, len(rows) + 1), typed=True, unit="row")


def column_names(path: Path) -> tuple[str, ...]:
    """The names of a file's columns, by its beginning alone; none if it cannot be read, which `read_table` then explains.

    Of JSON lines, those of the first one.
    """
    try:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            return tuple(pyarrow.parquet.read_schema(path).names)
        _, first = next(_text_lines(path))
        if path.suffix.lower() == ".jsonl":
            content = json.loads(first)
            return tuple(content) if isinstance(content, dict) else ()
        return tuple(next(csv.reader([first], delimiter="\t" if path.suffix.lower() == ".tsv" else ",")))
    except (OSError, ValueError, StopIteration):
        return ()


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line without its end; empty lines at the end of the file are not lines.

    Split at line feeds only: texts hold other characters that str.splitlines would break at.
    """
    empty: list[tuple[int, str]] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}).") from error
            if line:
                yield from empty
                empty.clear()
                yield number, line
            else:
                empty.append((number, line))


def _check_header(path: Path, names: tuple[str, ...]) -> None:
    if not any(names):
        raise DataError(f"{path}: the file is empty.")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}, line 1: two columns have the name {twice[0]!r}; rename one.")


def _wrong_field_count(where: str, fields: Sequence[str], names: Sequence[str]) -> DataError:
    return DataError(
        f"{where}: expected {len(names)} fields ({', '.join(names)}), found {len(fields)}: "
        f"{', '.join(repr(f[:30]) for f in fields[:6])}{', ...' if len(fields) > 6 else ''}."
    )


def _table(
    path: Path,
    columns: tuple[str, ...],
    rows: list[tuple[Any, ...]],
    lines: Sequence[int],
    *,
    typed: bool,
    unit: str = "line",
) -> Table:
    if not rows:
        raise DataError(f"{path}: the file is empty: it has no row of data.")
    return Table(path, columns, rows, lines, typed=typed, unit=unit)
