"""Reading tables: values as they are, and errors that name file and line."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from glora.experiments.data.table_files import Table, column_names, read_table
from glora.experiments.data.task import DataError, DataNotFoundError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(table: Table) -> list[tuple]:
    return list(zip(*table.columns.values()))


def test_tsv_takes_quotation_marks_for_themselves(tmp_path: Path) -> None:
    text = 'text\tlabel\n"an open quote\tyes\n\'s" and ""\tno\n'
    table = read_table(write(tmp_path / "a.tsv", text))
    assert rows(table) == [('"an open quote', "yes"), ('\'s" and ""', "no")]
    assert [table.where(i) for i in (0, 1)] == [f"{tmp_path}/a.tsv, line 2", f"{tmp_path}/a.tsv, line 3"]


def test_tsv_breaks_lines_at_line_feeds_only(tmp_path: Path) -> None:
    text = "\ufefftext\tlabel\r\none\u2028line\x0b\x85here\t1\r\n\n\n"  # BOM, CRLF, empty lines at the end
    assert rows(read_table(write(tmp_path / "a.tsv", text))) == [("one\u2028line\x0b\x85here", "1")]


def test_tsv_keeps_blanks_and_empty_fields_at_the_end_of_a_line(tmp_path: Path) -> None:
    assert rows(read_table(write(tmp_path / "a.tsv", "x\ty\n1\ttwo \n3\t\n"))) == [("1", "two "), ("3", "")]


def test_tsv_keeps_named_columns_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "1\t2\t3\n4\t5\t6\n")
    assert rows(read_table(path, header=("x", "y", "z"), keep=("z", "x"))) == [("3", "1"), ("6", "4")]


def test_tsv_leaves_out_so_many_short_rows_and_no_more(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "x\ty\n1\n2\n3\t4\n")
    assert rows(read_table(path, short_rows_skipped=2)) == [("3", "4")]
    with pytest.raises(DataError, match="line 3: expected 2 fields"):
        read_table(path, short_rows_skipped=1)
    with pytest.raises(DataError, match="found 3"):
        read_table(write(path, "x\ty\n1\t2\t3\n"), short_rows_skipped=9)


def test_csv_counts_lines_through_quoted_line_breaks(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", 'text,label\n"two\nlines, ""quoted""",1\n\nplain,2\n'))
    assert rows(table) == [('two\nlines, "quoted"', "1"), ("plain", "2")]
    assert table.where(1) == f"{tmp_path}/a.csv, line 5"


def test_jsonl_keeps_types_and_knows_what_a_row_lacks(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.jsonl", '{"t": "x", "n": 1}\n{"t": "y", "s": 0.5}\n\n'))
    assert table.columns == {"t": ["x", "y"], "n": [1, None], "s": [None, 0.5]}
    assert list(table.records())[1] == {"t": "y", "n": None, "s": 0.5}


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None], "label": [1, 2]}), path)
    table = read_table(path)
    assert table.columns == {"text": ["x", None], "label": [1, 2]}
    assert table.where(1) == f"{path}, row 2"


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", "premise,hypothesis,label\na,b,1\n"))
    with pytest.raises(DataError, match=r"a\.csv: .*column 'hypotesis'.* mean 'hypothesis'.*: premise"):
        table.column("hypotesis")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "x\ty\n1\t2\n3\n", r"a\.tsv, line 3: expected 2 fields \(x, y\), found 1: '3'"),
        ("a.csv", "x,y\n1,2\n1,2,3\n", r"a\.csv, line 3: expected 2 fields \(x, y\), found 3: '1', '2', '3'"),
        ("a.csv", 'x,y\n"open,2\n', r"a\.csv, line 2: malformed CSV: unexpected end"),
        ("a.csv", 'x,y\n1,"a"b\n', r"a\.csv, line 2: malformed CSV"),
        ("a.csv", b"x,y\n" + 50 * b"1,2\n" + b"1,caf\xe9\n", r"a\.csv, line 52: not UTF-8 text \(byte 0xe9\)"),
        ("a.csv", "x,x\n1,2\n", r"a\.csv: two columns .*'x'"),
        ("a.tsv", "x\tx\n1\t2\n", r"a\.tsv: two columns .*'x'"),
        ("a.tsv", "x\ty\r1\t2\r", r"a\.tsv, line 1: .*CR alone"),
        ("a.jsonl", '{"x": 1}\r{"x": 2}\r', r"a\.jsonl, line 1: .*CR alone"),
        ("a.tsv", b"x\ty\n1\t2\n\xff\t3\n", r"a\.tsv, line 3: not UTF-8"),
        ("a.jsonl", '{"x": 1}\n{"x": }\n', r"a\.jsonl, line 2: malformed JSON .*column 7\b"),
        ("a.jsonl", '{"x": 1}\n{"x": 1, "x": 2}\n', r"a\.jsonl, line 2: 'x' .*more than once"),
        ("a.jsonl", '{"x": 1}\n{"x": "a \\ud83d"}\n', r"a\.jsonl, line 2: .*u pair in 'a "),
        ("a.jsonl", '{"x": ' + "[" * 60 + "]" * 60 + "}\n", r"a\.jsonl, line 1: nested .*50 "),
        ("a.jsonl", '{"x": ' + "[" * 99999 + "]" * 99999 + "}\n", r"a\.jsonl, line 1: nested .*50 "),
        ("a.jsonl", '{"x": ' + "1" * 5000 + "}\n", r"a\.jsonl, line 1: malformed JSON: .*number"),
        ("a.json", '[{"x": 1},\n{"x": 1, "x": 2}]', r"a\.json: 'x' .*more than once"),
        ("a.json", b'[{"x": 1},\n{"x": "caf\xe9"}]', r"a\.json, line 2: not UTF-8"),
        ("a.json", '[{"x": 1},\n{"x": }]', r"a\.json: malformed JSON .*line 2, column 7\b"),
        ("a.jsonl", '[{"x": 1}]\n', r"a\.jsonl, line 1: .*JSON object a line"),
        ("a.jsonl", '{"x": 1}\n\n{"x": 2}\n', r"a\.jsonl, line 2: malformed JSON .*column 1\b"),
        ("a.parquet", "PAR", r"a\.parquet: .*Parquet"),
        *((f"a.{suffix}", "", "the file is empty") for suffix in ("csv", "tsv", "jsonl")),
        ("a.csv", "x,y\n", "file is empty: .*no row"),
        ("a.tsv", "x\ty\n", "file is empty: .*no row"),
        ("a.xlsx", "", r"suffix '\.xlsx'; .*\.csv, \.tsv, \.jsonl, \.parquet"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        read_table(path)
    assert set(column_names(path)) <= {"x", "y"}, "says nothing, and raises nothing"


def test_a_csv_file_may_end_its_lines_as_old_macs_did(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\r"two\rlines",1\rplain,2\r')
    assert column_names(path) == ("text", "label")
    assert rows(read_table(path)) == [("two\rlines", "1"), ("plain", "2")]


def test_an_empty_line_in_the_middle_of_a_tsv_is_malformed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: expected 2 fields"):
        read_table(write(tmp_path / "a.tsv", "x\ty\n1\t2\n\n3\t4\n"))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"no data file .*nowhere\.csv"):
        read_table(tmp_path / "nowhere.csv")
