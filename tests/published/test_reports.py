"""Committed tables belong to the committed records beside them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.compress import report as compress
from benchmarks.planted import report as planted

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_the_ways_to_compress() -> None:
    folder = BENCHMARKS / "compress"
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert (folder / "report.md").read_text() == compress.report(records)


def test_the_planted_ranks(tmp_path: Path) -> None:
    folder = BENCHMARKS / "planted"
    planted.write_report(folder / "records.jsonl", tmp_path)
    assert (folder / "report.md").read_text() == (tmp_path / "report.md").read_text()
