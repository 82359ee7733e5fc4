"""Typed cells: what each writes, and the value that it sorts by."""

from __future__ import annotations

import math

import pytest

from glora.experiments.data.metric import METRICS
from glora.experiments.report import cells
from glora.experiments.report.cells import Cell, Quantity, ReportTable, Verdict, cell_text
from glora.experiments.report.statistics import Estimate, PairedDifference, PairedRatio

DIFFERENCE = PairedDifference(0.0052, -0.001, 0.0114, (0, 1, 2), (0.002, 0.0052, 0.0084))
RATIO = PairedRatio(1.02, 0.01, 3, 0.995, 1.045)
SAME, GROWN = Estimate(331776.0, 0.0, 3), Estimate(390144.0, 1385.2, 3)
ACCURACY, LOSS = METRICS["accuracy"], METRICS["loss"]


def metric(name: str, *found: float | None) -> Cell:
    return cells.estimate_cell(Estimate(found[0], found[1], 3), cells.metric_unit(METRICS[name]))


@pytest.mark.parametrize(
    ("cell", "text", "value"),
    [
        (metric("accuracy", 0.8131, 0.0042), "81.3 ± 0.4", 0.8131),
        (metric("accuracy", 0.8131, None), "81.3 (n = 1)", 0.8131),
        (metric("matthews_correlation", -0.018, 0.021), "-1.8 ± 2.1", -0.018),
        (metric("loss", 0.8131, 0.0042), "0.813 ± 0.004", 0.8131),
        (metric("loss", math.nan, math.nan), "nan ± nan", math.nan),
        (cells.difference_cell(ACCURACY, DIFFERENCE), "+0.52 [-0.10, +1.14]", 0.0052),
        (
            cells.difference_cell(ACCURACY, PairedDifference(-0.0052, None, None, (0,), (-0.0052,))),
            "-0.52",
            -0.0052,
        ),
        (cells.difference_cell(LOSS, DIFFERENCE), "+0.0052 [-0.0010, +0.0114]", 0.0052),
        (cells.interval_cell(RATIO), "[0.995, 1.045]", 0.995),
        (cells.estimate_cell(RATIO, cells.RATIO), "1.020 ± 0.010", 1.02),
        (cells.count_cell(SAME, SAME), "331,776", 331776),
        (cells.count_cell(GROWN, SAME), "331,776 → 390,144 ± 1,385", 390144),
        (cells.share_cell(1.0), "100 %", 1),
        (cells.share_cell(1.0004), "100 %", 1.0004),
        (cells.share_cell(1.3021), "130.2 %", 1.3021),
        (cells.share_cell(123.451), "12,345 %", 123.451),
        (cells.share_cell(0.0), "0 %", 0),
        (cells.time_cell(Estimate(99.5, 6.0, 3)), "99.5 ± 6.0 s", 99.5),
        (cells.time_cell(Estimate(900.0, 6.0, 3)), "15.0 ± 0.1 min", 900),
        (cells.time_cell(Estimate(36000.0, None, 1)), "10.0 h", 36000),
        (cells.memory_cell(Estimate(1.5 * 2**30, None, 1)), "1.50 GiB", 1.5 * 2**30),
        (cells.memory_cell(Estimate(300 * 2**20, None, 1)), "300 MiB", 300 * 2**20),
        (Quantity(0.2764, cells.MILLISECONDS), "276.4 ms", 0.2764),
    ],
)
def test_a_quantity_writes_its_value_in_the_unit_of_the_field(cell: Cell, text: str, value: float) -> None:
    assert cell_text(cell) == text
    assert isinstance(cell, Quantity)
    assert cell.value == pytest.approx(value, nan_ok=True)


def test_a_number_that_does_not_exist_is_missing() -> None:
    found = [make(None) for make in (cells.interval_cell, cells.count_cell, cells.share_cell, cells.time_cell)]
    found += [
        cells.memory_cell(None),
        cells.difference_cell(LOSS, None),
        cells.estimate_cell(None, cells.RATIO),
    ]
    found.append(cells.interval_cell(PairedRatio(1.0, None, 1, None, None)))
    assert set(map(cell_text, found)) == {"–"}


def test_columns_of_quantities_are_aligned_right_whatever_is_missing() -> None:
    table = ReportTable(
        "t", ("a", "b", "c", "d"), (("x", Quantity(1, cells.COUNT), None, Verdict("yes")), ("y", None, None, None))
    )
    assert [table.is_words(column) for column in range(4)] == [True, False, True, True]
    assert cells.as_markdown(table).splitlines()[1:] == [
        "| --- | ---: | --- | --- |",
        "| x | 1 | – | yes |",
        "| y | – | – | – |",
    ]


def test_a_name_cannot_leave_its_cell_or_become_a_formula() -> None:
    assert cells.escape_markdown("$x$ a|b <b> [l](u) *e* `c` ~s~ &lt; \x1b\n#") == (
        r"\$x\$ a\|b \<b> \[l](u) \*e\* \`c\` \~s\~ \&lt; \\x1b #".replace(r"\\x1b", r"\x1b")
    )


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("12) a", r"12\) a"),
        ("> a", r"\> a"),
        ("=== a", r"\=== a"),
        ("0.5 a", r"0\.5 a"),
        ("a # 1. b", "a # 1. b"),
        ("see https://a.b and www.a.b", r"see https\://a.b and www\.a.b"),
    ],
)
def test_a_name_cannot_start_a_block_or_become_a_link(text: str, escaped: str) -> None:
    assert cells.escape_paragraph(text) == escaped
