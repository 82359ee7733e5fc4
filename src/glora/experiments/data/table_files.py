"""Tables from CSV, TSV, JSONL, Parquet and JSON files that know which line each row came from.

`datasets` and pandas read these formats too, but their errors name no line (of a JSONL file, or behind a quoted line break),
they take a quotation mark in a TSV file for a quoted field (GLUE's files are full of single ones), and `datasets` copies
everything into a cache.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.data.task import DataError, DataNotFoundError
from glora.experiments.structured_text import MalformedFileError, decode, parse_json
from glora.messages import did_you_mean
from glora.paths import regular_file

INTEGER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """Columns of a data file, or of a split of the hub.

    Attributes:
        path: the file, or the hub's name of the split.
        columns: name -> values; of CSV and TSV all are text. None where a JSON object lacks a field.
        lines: the number of each row: of the line where it ends; from 1 where `unit` is "row" or "entry".
        unit: the name of that number.
    """

    path: Path | str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = "line"

    def where(self, row: int) -> str:
        """Return `file, line n`, with which errors begin."""
        return f"{self.path}, {self.unit} {self.lines[row]}"

    def column(self, name: str) -> list[Any]:
        """Return all values of one column.

        Raises:
            DataError: there is no such column.
        """
        if name not in self.columns:
            raise DataError(
                f"{self.path}: there is no column {name!r}{did_you_mean(name, self.columns)}. "
                f"The file has: {', '.join(self.columns)}."
            )
        return self.columns[name]

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield each row as column -> value."""
        return (dict(zip(self.columns, values)) for values in zip(*self.columns.values()))


def read_table(
    path: Path,
    *,
    header: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    short_rows_skipped: int = 0,
) -> Table:
    """Read a data file in the format that its suffix names.

    Args:
        path: the file; text is UTF-8, with or without a byte order mark.
        header: the columns' names in a CSV or TSV file whose first line does not hold them.
        keep: the columns of a CSV or TSV file to keep, in this order; by default all.
        short_rows_skipped: the number of CSV or TSV lines with too few fields to leave out.

    Raises:
        DataNotFoundError: there is no such file.
        OSError: it is a folder, a pipe or a device, or cannot be read.
        DataError: the suffix is unknown, the file has no row, a line is malformed, or a column of `keep` is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in {*FIELDS, *OBJECTS}:
        raise DataError(f"{path}: unknown suffix {path.suffix!r}; use one of {', '.join(CUSTOM_SUFFIXES)}.")
    if not path.exists():
        raise DataNotFoundError(f"there is no data file {str(path)!r}.")
    regular_file(path)
    try:
        if suffix in FIELDS:
            table = _read_separated(path, FIELDS[suffix](path), header, keep, short_rows_skipped)
        else:
            table = OBJECTS[suffix](path)
    except MalformedFileError as error:
        raise DataError(str(error)) from error
    if not table.lines:
        raise DataError(f"{path}: the file is empty: it has no row of data.")
    return table


def _unique(names: Sequence[str], path: Path) -> Sequence[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: two columns have the name {twice[0]!r}; rename one.")
    return names


def _read_separated(
    path: Path,
    lines: Iterator[tuple[int, list[str]]],
    header: Sequence[str] | None,
    keep: Sequence[str] | None,
    short_rows_skipped: int,
) -> Table:
    names = _unique(header or next(lines, (0, []))[1], path)
    if not any(names):
        return Table(path, {}, ())
    absent = [name for name in keep or () if name not in names]
    if absent:
        raise DataError(
            f"{path}, line 1: expected the columns {', '.join(keep or ())}; found {', '.join(names)}. "
            f"Missing: {', '.join(absent)}."
        )
    columns: dict[str, list[str]] = {name: [] for name in keep or names}
    places = [(names.index(name), values) for name, values in columns.items()]
    numbers = []
    for number, fields in lines:
        if len(fields) < len(names) and short_rows_skipped:
            short_rows_skipped -= 1
            continue
        if len(fields) != len(names):
            raise DataError(
                f"{path}, line {number}: expected {len(names)} fields ({', '.join(names)}), found {len(fields)}: "
                f"{', '.join(repr(f[:30]) for f in fields[:6])}{', ...' if len(fields) > 6 else ''}."
            )
        for i, values in places:
            values.append(fields[i])
        numbers.append(number)
    return Table(path, columns, numbers)


def _tsv_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    r"""One row a line; quotation marks are text (QUOTE_NONE), `\r\n` is accepted."""
    return ((number, line.split("\t")) for number, line in _text_lines(path))


def _csv_fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    r"""Rows quoted as in RFC 4180, ending with `\n`, `\r\n` or `\r`; a quoted field may span lines, empty lines are skipped."""
    with path.open("rb") as file:
        lines = (line for chunk in file for line in chunk.splitlines(keepends=True))
        reader = csv.reader((decode(line, path, number) for number, line in enumerate(lines, start=1)), strict=True)
        try:
            for fields in filter(None, reader):
                yield reader.line_num, fields
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: malformed CSV: {error}.") from error


def _read_jsonl(path: Path) -> Table:
    """Read one JSON object a line."""
    objects = {number: parse_json(line, path, number) for number, line in _text_lines(path)}
    for number, value in objects.items():
        if not isinstance(value, dict):
            raise DataError(
                f"{path}, line {number}: expected one JSON object a line, such as "
                f'{{"sentence": "...", "label": 1}}; found {str(value)[:40]!r}.'
            )
    return _table_of_objects(path, list(objects.values()), list(objects), "line")


def _read_json(path: Path) -> Table:
    """Read a list of objects, or one object."""
    content = parse_json(decode(path.read_bytes(), path), path)
    objects = content if isinstance(content, list) else [content]
    if not all(isinstance(row, dict) for row in objects):
        raise DataError(f"{path}: expected a list of objects, or one object.")
    return _table_of_objects(path, objects, range(1, len(objects) + 1), "entry")


def _read_parquet(path: Path) -> Table:
    import pyarrow  # type: ignore[import-untyped]  # heavy, and needed for this format only
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        content = pyarrow.parquet.read_table(path)
        columns = [column.to_pylist() for column in content.columns]
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: texts that are not UTF-8
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
    names = _unique(content.column_names, path)
    return Table(path, dict(zip(names, columns)), range(1, content.num_rows + 1), "row")


CUSTOM_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Formats of custom data; a registered task may be a .json file too."""
FIELDS: dict[str, Callable[[Path], Iterator[tuple[int, list[str]]]]] = {".csv": _csv_fields, ".tsv": _tsv_fields}
OBJECTS: dict[str, Callable[[Path], Table]] = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}


def column_names(path: Path) -> tuple[str, ...]:
    """Return a file's column names from its beginning; of JSON lines, those of the first line.

    Empty if the file cannot be read; `read_table` then says why.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet  # heavy, and needed for this format only

            return tuple(pyarrow.parquet.read_schema(path).names)
        if suffix == ".jsonl":
            number, first = next(_text_lines(path))
            content = parse_json(first, path, number)
            return tuple(content) if isinstance(content, dict) else ()
        if suffix == ".json":
            return tuple(_read_json(path).columns)
        return tuple(next(FIELDS[suffix](path))[1]) if suffix in FIELDS else ()
    except (OSError, ValueError, NotImplementedError, StopIteration):
        return ()


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line without its end; empty lines at the end of the file are not lines.

    Splits at line feeds only: texts hold other characters at which str.splitlines would break.
    """
    empty: list[tuple[int, str]] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = decode(raw, path, number).rstrip("\r\n")
            if number == 1 and "\r" in line:
                raise DataError(
                    f"{path}, line 1: lines end with CR alone, as on old Macs; save the file with LF line ends."
                )
            if line:
                yield from empty
                empty.clear()
                yield number, line
            else:
                empty.append((number, line))


def _table_of_objects(path: Path, objects: Sequence[dict[str, Any]], numbers: Sequence[int], unit: str) -> Table:
    names = dict.fromkeys(name for value in objects for name in value)
    return Table(path, {name: [value.get(name) for value in objects] for name in names}, numbers, unit)
