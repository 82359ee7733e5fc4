"""The tables and README show what the records of benchmarks/cost say, and nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cost_table", ROOT / "benchmarks" / "cost" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_what_the_records_give(table: ModuleType) -> None:
    for page, text in table.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run python benchmarks/cost/table.py"


def test_records_name_no_folder_and_no_host(table: ModuleType) -> None:
    records = table.read_records()
    assert {record["kind"] for record in records} == {"steps", "shared input", "growth", "startup"}
    for record in records:
        text = json.dumps(record)
        assert not any(word in text for word in ("/work", "/home", "/root", "/tmp")), record["kind"]
        assert record["provenance"]["versions"]["peft"]


def test_ratios_are_taken_within_rounds(table: ModuleType) -> None:
    """The machine became half as fast after the third round; both were hit alike."""
    lora = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    ratio, low, high = table.median_ratio([0.9 * s for s in lora], lora)
    assert (ratio, low, high) == pytest.approx((0.9, 0.9, 0.9))
    ratio, low, high = table.median_ratio([0.8, 1.0, 0.9, 1.9, 1.7, 1.8], lora)
    assert low <= ratio <= high
    assert (low, high) == pytest.approx((0.85, 0.975), abs=0.06)
    with pytest.raises(ValueError, match="longer than argument 1"):
        table.median_ratio([1.0], lora)
