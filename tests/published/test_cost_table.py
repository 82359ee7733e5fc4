"""The tables and README show what the records of benchmarks/cost say, and nothing else."""

from __future__ import annotations

import json

import pytest
from benchmarks.cost import table


def test_the_pages_are_what_the_records_give() -> None:
    for page, text in table.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run python -m benchmarks.cost.table"


def test_records_name_no_folder_and_no_host() -> None:
    records = [record for found in table.machines().values() for record in found]
    assert {record["kind"] for record in records} == {"steps", "shared input", "growth", "startup"}
    for record in records:
        text = json.dumps(record)
        assert not any(word in text for word in ("/work", "/home", "/root", "/tmp")), record["kind"]
        assert record["provenance"]["versions"]["peft"]


def test_ratios_are_taken_within_rounds() -> None:
    """The machine became half as fast after the third round; both were hit alike."""
    lora = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    ratio, low, high = table.median_ratio([0.9 * s for s in lora], lora)
    assert (ratio, low, high) == pytest.approx((0.9, 0.9, 0.9))
    ratio, low, high = table.median_ratio([0.8, 1.0, 0.9, 1.9, 1.7, 1.8], lora)
    assert low <= ratio <= high
    assert (low, high) == pytest.approx((0.85, 0.975), abs=0.06)
    with pytest.raises(ValueError, match="longer than argument 1"):
        table.median_ratio([1.0], lora)
