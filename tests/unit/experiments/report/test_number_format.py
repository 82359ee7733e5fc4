"""How numbers are written."""

from __future__ import annotations

import pytest

from glora.experiments.report import number_format as text
from glora.experiments.report.statistics import Estimate, PairedDifference


@pytest.mark.parametrize(
    ("metric", "header", "shown"),
    [
        ("accuracy", "Accuracy (%)", "81.3 ± 0.4"),
        ("matthews_correlation", "Matthews corr. (×100)", "81.3 ± 0.4"),
        ("f1", "F1 (%)", "81.3 ± 0.4"),
        ("pearson", "Pearson corr. (×100)", "81.3 ± 0.4"),
        ("spearman", "Spearman corr. (×100)", "81.3 ± 0.4"),
        ("validation_mismatched/accuracy", "Accuracy (validation mismatched) (%)", "81.3 ± 0.4"),
        ("loss", "Loss", "0.813 ± 0.004"),
        ("perplexity", "Perplexity", "0.813 ± 0.004"),
    ],
)
def test_metrics_in_the_unit_of_the_field(metric: str, header: str, shown: str) -> None:
    assert text.metric_header(metric) == header
    assert text.metric_text(metric, Estimate(0.8131, 0.0042, 3)) == shown


def test_one_seed_shows_its_number_and_no_spread() -> None:
    assert text.metric_text("accuracy", Estimate(0.8131, None, 1)) == "81.3 (n = 1)"
    assert text.metric_text("accuracy", None) == "–"
    assert text.metric_text("accuracy", Estimate(float("nan"), float("nan"), 2)) == "nan ± nan"


def test_differences_are_in_points_with_their_sign() -> None:
    found = PairedDifference(0.0052, -0.001, 0.0114, (0, 1, 2), (0.002, 0.0052, 0.0084))
    assert text.difference_text("accuracy", found) == "+0.52 [-0.10, +1.14]"
    assert text.difference_text("accuracy", PairedDifference(-0.0052, None, None, (0,), (-0.0052,))) == "-0.52"
    assert text.difference_text("accuracy", None) == "–"


def test_counts_show_the_start_only_if_it_differs_and_the_spread_only_if_there_is_one() -> None:
    same, other = Estimate(331776.0, 0.0, 3), Estimate(390144.0, 1385.2, 3)
    assert text.count_text(same, same) == "331,776"
    assert text.count_text(other, same) == "331,776 → 390,144 ± 1,385"
    assert text.count_text(None, same) == "–"


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1.0, "100 %"), (1.3021, "130.2 %"), (0.0, "0 %"), (123.451, "12,345 %"), (None, "–"), (1.0004, "100 %")],
)
def test_shares_in_percent(share: float | None, shown: str) -> None:
    assert text.share_text(share) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(99.5, "99.5 ± 6.0 s"), (900.0, "15.0 ± 0.1 min"), (36000.0, "10.0 ± 0.0 h")]
)
def test_times_in_a_readable_unit(seconds: float, shown: str) -> None:
    assert text.time_text(Estimate(seconds, 6.0, 3)) == shown
    assert text.step_text(Estimate(0.2764, None, 1)) == "276.4 ms"


def test_memory() -> None:
    assert text.memory_text(Estimate(1.5 * 2**30, None, 1)) == "1.50 GiB"
    assert text.bytes_text(300 * 2**20) == "300 MiB"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("microsoft/deberta-v3-base", "microsoft/deberta-v3-base"),
        ("rte", "rte"),
        ("/home/me/models/mine", "mine"),
        ("../data/pairs.csv", "pairs.csv"),
        ("~/models/mine/", "mine"),
        ("C:\\models\\mine", "mine"),
        ("data/sub/pairs.csv", "pairs.csv"),
    ],
)
def test_names_without_folders(name: str, shown: str) -> None:
    assert text.short_name(name) == shown


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("52.6 ± 1.4", 52.6),
        ("81.3 (n = 1)", 81.3),
        ("-3.25 [-7.16, +0.66]", -3.25),
        ("+0.12", 0.12),
        ("[0.951, 1.308]", 0.951),
        ("331,776 → 429,696 ± 8,307", 429_696),
        ("1", 1),
        ("90.0 s", 90),
        ("2.5 ± 0.1 min", 150),
        ("1.0 h", 3600),
        ("1,738.9 ms", 1.7389),
        ("512 MiB", 512),
        ("2.00 GiB", 2048),
        ("–", None),
        ("nan ± nan", None),
        ("", None),
    ],
)
def test_what_a_cell_sorts_by(cell: str, number: float | None) -> None:
    assert text.sort_number(cell) == (None if number is None else pytest.approx(number))
