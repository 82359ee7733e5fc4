"""The published claims: each verdict by the interval, against cases worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from glora.experiments.records.schema import RunRecord
from glora.experiments.report.claims import Finding, findings, judged
from glora.experiments.report.summary import summarise
from glora.experiments.report.tables import claims_table
from unit.experiments.synthetic_records import finished_run

SHAPES = {"layer.0.a": (4, 6), "layer.0.b": (2, 8)}
GAIN, SHARE, TIME, PARAMETERS = range(4)
LORA = (0.80, 0.82, 0.84)
PUBLISHED = {"model": "microsoft/deberta-v3-base", "task": "mnli"}


def runs(
    method: str,
    values: Sequence[float],
    *,
    seconds: Sequence[float] = (100, 100, 100, 100),
    parameters: Sequence[int] = (160, 160, 160, 160),
    **settings: object,
) -> list[RunRecord]:
    made = [
        finished_run(
            **{"method": method, "seed": seed, "final": {"accuracy": value}, "train_seconds": time, "shapes": SHAPES},
            **PUBLISHED | settings,
        )
        for seed, (value, time) in enumerate(zip(values, seconds))
    ]
    return [
        run.model_copy(update={"adapter_parameters_after": count}) for run, count in zip(made, parameters, strict=False)
    ]


def after(gains: Mapping[str, Sequence[float]], **glora: object) -> list[Finding]:
    """The claims when each method gains these points over lora, seed by seed."""
    made = runs("lora", LORA)
    for method, points in gains.items():
        values = [base + point / 100 for base, point in zip(LORA, points)]
        made += runs(method, values, **(glora if method == "glora" else {}))
    return only(made)


def only(made: list[RunRecord]) -> list[Finding]:
    """The claims of the one row of glora in the one group."""
    (group,) = summarise(made)
    (row,) = findings(group).values()
    return list(row)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.5, 1.0, ("holds", "")),
        (0.4, 0.9, ("not shown", "")),
        (0.6, 1.1, ("not shown", "")),
        (1.01, 1.2, ("does not hold", "more")),
        (-1.0, 0.49, ("does not hold", "less")),
        (-1.0, 0.5, ("not shown", "")),
        (math.nan, math.nan, ("not shown", "")),
    ],
)
def test_a_verdict_is_about_the_whole_interval(low: float, high: float, verdict: tuple[str, str]) -> None:
    assert judged(low, high, (0.5, 1.0)) == verdict


@pytest.mark.parametrize(
    ("points", "verdict"),
    [
        ((0.74, 0.75, 0.76), "holds"),  # 0.75 ± 4.3027 · 0.01 / sqrt(3) = 0.75 ± 0.025
        ((0.60, 0.75, 0.90), "not shown"),  # 0.75 ± 0.37: the mean is in the range, the interval is not
        ((1.50, 1.51, 1.52), "does not hold"),
        ((-0.4, -0.5, -0.6), "does not hold"),
    ],
)
def test_the_gain_is_judged_by_its_interval(points: tuple[float, ...], verdict: str) -> None:
    found = after({"glora": points})[GAIN]
    assert found.verdict == verdict
    assert found.mean == pytest.approx(points[1])
    assert found.seeds == 3


def test_the_share_of_adaloras_gain_has_fiellers_interval() -> None:
    """x = 0.9, 1.0, 1.1 and y = 1, 1, 1: y does not vary, so the interval is that of x / 1."""
    found = after({"glora": (0.9, 1.0, 1.1), "adalora": (1, 1, 1)})[SHARE]
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) * 0.1 / math.sqrt(3)
    assert found.mean == pytest.approx(100)
    assert (found.low, found.high) == pytest.approx((100 - 100 * half, 100 + 100 * half))
    assert found.verdict == "not shown"
    always_92 = after({"glora": (0.92, 1.84, 1.38), "adalora": (1, 2, 1.5)})[SHARE]
    assert (always_92.verdict, always_92.mean) == ("holds", pytest.approx(92))
    assert after({"glora": (0.5, 1, 0.75), "adalora": (1, 2, 1.5)})[SHARE].verdict == "does not hold"


@pytest.mark.parametrize("rival", [(-3.0, -3.1, -3.2), (0.1, -0.1, 0.05), (2.0, 0.1, 0.2)])
def test_without_a_gain_of_adalora_there_is_no_share_of_it(rival: tuple[float, ...]) -> None:
    """Two losses of 3 points would make a share of 95 %: a ratio of the means must not say so."""
    found = after({"glora": [0.93 * value for value in rival], "adalora": rival})[SHARE]
    assert (found.verdict, found.mean) == ("not shown", None)
    assert found.remark.startswith("adalora's own gain is not shown")


@pytest.mark.parametrize(
    ("seconds", "verdict", "remark"),
    [
        ((100, 101, 100), "holds", ""),  # +0.33 % ± 1.43
        ((100, 101, 103), "not shown", ""),
        ((110, 110.1, 110.2), "does not hold", "more"),
        ((90, 90.1, 90.2), "does not hold", "less"),
    ],
)
def test_time_within_two_percent(seconds: tuple[float, ...], verdict: str, remark: str) -> None:
    found = after({"glora": (1, 1, 1)}, seconds=seconds)[TIME]
    assert (found.verdict, found.remark) == (verdict, remark)
    assert found.mean == pytest.approx(sum(seconds) / 3 - 100)


def test_times_of_other_commands_show_nothing() -> None:
    made = runs("lora", LORA) + runs("glora", LORA)
    for run, start in zip(made, ("a", "a", "a", "b", "b", "b")):
        provenance = run.provenance.model_copy(update={"process_started_at": start})
        made[made.index(run)] = run.model_copy(update={"provenance": provenance})
    found = only(made)
    assert found[TIME].verdict == "not shown"
    assert found[TIME].mean is None
    assert "side by side with lora" in found[TIME].remark
    assert found[GAIN].mean == 0


@pytest.mark.parametrize(
    ("parameters", "verdict", "remark"),
    [
        ((160, 160, 160), "holds", ""),
        ((150, 155, 160), "holds", ""),  # a rank of either matrix costs 10
        ((160, 160, 171), "does not hold", "more"),
        ((149, 160, 171), "does not hold", "more or less"),
        ((180, 190, 171), "does not hold", "more"),
        ((100, 100, 100), "does not hold", "less"),
    ],
)
def test_parameters_are_equal_within_one_rank(parameters: tuple[int, ...], verdict: str, remark: str) -> None:
    found = after({"glora": (1, 1, 1)}, parameters=parameters)[PARAMETERS]
    assert (found.verdict, found.remark) == (verdict, remark)


def test_two_seeds_conclude_nothing_but_what_is_counted() -> None:
    made = runs("lora", LORA[:2]) + runs("adalora", (0.9, 0.9)) + runs("glora", (0.9, 0.9))
    (group,) = summarise(made)
    found = only(made)
    assert [one.verdict for one in found] == ["not shown", "not shown", "not shown", "holds"]
    assert all("2 seeds" in one.remark for one in found[:3])
    table = claims_table(group)
    assert tuple(map(str, table.rows[GAIN])) == (
        "gain over lora, Accuracy",
        "not shown (nothing can be concluded from 2 seeds)",
        "+0.5 to +1.0 points",
        "+9.00 points (2 seeds)",
    )


def test_a_diverged_run_shows_nothing() -> None:
    found = after({"glora": (1, math.nan, 1), "adalora": (1, 1, 1)})
    assert [one.verdict for one in found] == ["not shown", "not shown", "holds", "holds"]


def test_each_row_of_the_method_has_its_claims_and_names_its_settings() -> None:
    made = runs("lora", LORA) + runs("glora", LORA, beta=0.5) + runs("glora", LORA, beta=0.9)
    (group,) = summarise(made)
    assert list(findings(group)) == ["GLoRA by gradient norm (beta=0.5)", "GLoRA by gradient norm (beta=0.9)"]
    assert [row[0].partition(": ")[0] for row in claims_table(group).rows[::4]] == [
        "GLoRA by gradient norm (beta=0.5)",
        "GLoRA by gradient norm (beta=0.9)",
    ]


@pytest.mark.parametrize("methods", [("lora",), ("glora",), ("lora", "adalora"), ("lora", "glora:budget=parameters")])
def test_without_the_method_or_lora_there_is_nothing_to_claim(methods: tuple[str, ...]) -> None:
    (group,) = summarise([run for method in methods for run in runs(method, LORA)])
    assert findings(group) == {}


@pytest.mark.parametrize(
    ("settings", "claimed"),
    [
        ({}, True),
        ({"model": "/models/deberta-v3-base"}, True),
        ({"task": "rte"}, False),
        ({"model": "all-MiniLM-L6-v2"}, False),
        ({"rule": "uniform"}, False),
    ],
)
def test_only_the_published_experiment_has_claims(settings: dict[str, str], claimed: bool) -> None:
    glora = {"method": "glora", "values": LORA, **settings}
    (group,) = summarise(runs("lora", LORA, **{n: v for n, v in settings.items() if n != "rule"}) + runs(**glora))
    assert bool(claims_table(group).rows) is claimed


def test_without_adalora_there_is_no_share() -> None:
    assert after({"glora": (1, 1, 1)})[SHARE].remark == "no adalora to compare with"
