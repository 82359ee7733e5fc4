"""Charts: what they show is right, and every shape of study has its pictures."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
from numpy.testing import assert_allclose

from glora.experiments.data.metric import METRICS
from glora.experiments.records.schema import EpochMetrics, NormSample, RunRecord
from glora.experiments.report.chart_style import LIGHT, MARKERS, ReportChart, method_styles
from glora.experiments.report.charts import charts, mean_ranks
from glora.experiments.report.metric_chart import evaluations
from glora.experiments.report.norm_chart import corrected_norms, same_norms
from glora.experiments.report.summary import GroupSummary, summarise
from unit.experiments.synthetic_records import bert_shapes, finished_run, study

METHODS = ("lora", "adalora", "glora")
GLORA = "GLoRA by gradient norm"
NASTY = "$x$_{2}^<b>&amp;\x1b[31m\x00\u202e</script>\n'\"`${1+1}`"


def group_of(records: list[RunRecord]) -> GroupSummary:
    (group,) = summarise(records)
    return group


def chart(records: list[RunRecord], name: str) -> ReportChart:
    (found,) = (each for each in charts(group_of(records)) if f"-{name}" in each.name)
    return found


def rows(shown: ReportChart, field: str) -> list[dict[str, Any]]:
    """The rows of the only data set that has this field."""
    (found,) = (rows for rows in shown.spec["datasets"].values() if rows and field in rows[0])
    return found


def png_size(image: bytes) -> tuple[int, int]:
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", image[16:24])
    return width, height


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(study(METHODS, (0, 1, 2)), id="3 methods, 3 seeds"),
        pytest.param(study(METHODS, (0, 1), shapes={"fc_in": (8, 4), "fc_out": (2, 8)}), id="no layers"),
        pytest.param(
            study(
                ("lora", "glora"),
                (0,),
                shapes={
                    f"layers.{i}.experts.{e}.{p}": (8, 8) for i in (0, 1) for e in range(9) for p in ("up", "down")
                },
            ),
            id="experts",
        ),
        pytest.param(study(("glora",), (0,), shapes={f"m{chr(97 + i)}": (8, 8) for i in range(20)}), id="20 types"),
        pytest.param(study(("glora",), (0,), steps_per_epoch=1), id="a warm-up of one step"),
        pytest.param(
            study(
                (f"lora{NASTY}", "glora"),
                (0,),
                shapes={f"layer.{i}.{NASTY}": (8, 8) for i in range(3)},
                task=NASTY,
                final={NASTY: 0.5},
            ),
            id="nasty names",
        ),
    ],
)
def test_every_shape_of_study_can_be_drawn(records: list[RunRecord]) -> None:
    found = charts(group_of(records))
    names = " ".join(each.name for each in found)
    assert all(part in names for part in ("time", "ranks-glora-by", "norms-glora-by"))
    assert "ranks-lora" not in names, "uniform ranks are nothing to look at"
    for each in found:
        width, height = png_size(each.png())
        assert 300 < width < 3000
        assert 300 < height < 4000
        assert each.caption.endswith(".")


def test_ten_thousand_matrices_are_drawn_in_bounded_size_and_time() -> None:
    began = time.process_time()
    found = charts(group_of(study(("glora",), (0,), shapes=bert_shapes(1667), steps_per_epoch=3)))
    assert len(found) == 3
    assert all(max(png_size(each.png())) < 7000 for each in found)
    ranks, norms = found[1:]
    assert len(rows(ranks, "rank")) <= 2400
    assert "several matrices shows their mean" in ranks.caption
    assert sum(len(dataset) for dataset in norms.spec["datasets"].values()) <= 460
    assert time.process_time() - began < 60


def test_runs_without_evaluations_norms_or_ranks_have_no_charts() -> None:
    bare = finished_run(method="lora").model_copy(update={"metrics": [], "ranks": {}})
    assert charts(group_of([bare])) == ()


def test_the_rank_map_shows_the_mean_rank_of_each_matrix() -> None:
    runs = [
        finished_run(method="glora", seed=seed).model_copy(
            update={
                "ranks": {"layer.0.q": first, "layer.0.v": 3, "layer.1.q": 20},
                "initial_ranks": {"layer.0.q": 8, "layer.0.v": 8, "layer.1.q": 8, "layer.1.v": 8},
            }
        )
        for seed, first in ((0, 4), (1, 5))
    ]
    assert mean_ranks(group_of(runs).methods[0]) == {"layer.0.q": 4.5, "layer.0.v": 3, "layer.1.q": 20, "layer.1.v": 0}
    cells = {(row["type"], row["row"]): (row["text"], row["seeds"]) for row in rows(chart(runs, "ranks"), "rank")}
    assert cells == {
        ("q", "0"): ("4.5", "4, 5"),
        ("v", "0"): ("3", "3, 3"),
        ("q", "1"): ("20", "20, 20"),
        ("v", "1"): ("0", "0, 0"),
    }


def test_rank_maps_of_a_group_share_their_colors() -> None:
    maps = [each.spec for each in charts(group_of(study(METHODS, (0,)))) if "-ranks-" in each.name]
    domains = [layer["encoding"]["color"]["scale"]["domain"] for spec in maps for layer in spec["layer"][:1]]
    assert len(domains) == 2
    assert domains[0] == domains[1]
    assert domains[0][1] == 8, "uniform LoRA's rank is the neutral color"


def test_bias_correction_of_the_norms() -> None:
    """A gradient norm that is always 3 is 3 at every step, though its average starts at zero."""
    beta, average, samples = 0.9, 0.0, []
    for step in range(1, 40):
        average = beta * average + (1 - beta) * 3.0
        samples.append(NormSample(step=step, values={"a": average}))
    run = finished_run(method="glora", beta=beta).model_copy(update={"norms": samples})
    assert [norms["a"] for norms in corrected_norms(run).values()] == pytest.approx([3.0] * 39)
    still = finished_run(method="glora", beta=0.0).model_copy(update={"norms": samples[:1]})
    assert corrected_norms(still) == {1: samples[0].values}


def test_the_norm_panels_have_every_matrix_over_all_steps() -> None:
    levels = {"layer.0.q": 1.0, "layer.1.q": 2.0, "layer.2.q": 6.0, "layer.0.v": 3.0}
    norms = [NormSample(step=s, values={k: v * (1 - 0.9**s) for k, v in levels.items()}) for s in (1, 2, 3)]
    shown = chart([finished_run(method="glora").model_copy(update={"norms": norms})], "norms")
    lines = {row["matrix"]: row for row in rows(shown, "type")}
    assert {name: row["norm"] for name, row in lines.items()} == {name: [level] * 3 for name, level in levels.items()}
    assert {name: (row["type"], row["depth"]) for name, row in lines.items()} == {
        "layer.0.q": ("q", 0),
        "layer.1.q": ("q", 0.5),
        "layer.2.q": ("q", 1),
        "layer.0.v": ("v", 0),
    }
    assert [row["step"] for row in lines.values()] == [[1, 2, 3]] * 4
    assert shown.values is not None
    assert [tuple(map(str, row)) for row in shown.values.rows] == [
        ("q", "3", "1.000", "2.000", "6.000", "2.000"),
        ("v", "1", "3.000", "3.000", "3.000", "3.000"),
    ]


def test_a_control_with_the_same_warm_up_needs_no_second_chart_of_it() -> None:
    glora = finished_run(method="glora")
    shuffled = finished_run(method="shuffled").model_copy(update={"norms": glora.norms})
    assert same_norms(group_of([glora]).methods[0], group_of([shuffled]).methods[0])
    assert chart([glora, shuffled], "norms").title.endswith("GLoRA by gradient norm")
    other = finished_run(method="shuffled", seed=0, beta=0.5)
    assert not same_norms(group_of([glora]).methods[0], group_of([other]).methods[0])


def test_the_metric_chart_joins_means_and_marks_every_seed() -> None:
    def run(seed: int, *points: tuple[float, float]) -> RunRecord:
        metrics = [
            EpochMetrics(epoch=i, step=10 * i, split="validation", train_seconds=s, values={"accuracy": value})
            for i, (s, value) in enumerate(points, start=1)
        ]
        return finished_run(method="lora", seed=seed, final={"accuracy": 0.5}).model_copy(update={"metrics": metrics})

    shown = chart([run(0, (10, 0.5), (20, 0.7)), run(1, (14, 0.6), (28, 0.9))], "time")
    line, spread, runs = (shown.spec["datasets"][layer["data"]["name"]] for layer in shown.spec["layer"])
    assert_allclose([(row["time"], row["value"]) for row in line], [(12, 55), (24, 80)])
    assert_allclose([(row["time"], row["value"]) for row in runs], [(10, 50), (14, 60), (20, 70), (28, 90)])
    assert_allclose(
        [(row["time"], row["low"], row["high"]) for row in spread], [(24, 80 - 200**0.5, 80 + 200**0.5)], rtol=1e-3
    )
    assert "Accuracy (%)" in str(shown.spec["layer"][0]["encoding"]["y"])


def test_secondary_splits_are_not_on_the_curve() -> None:
    run = finished_run(final={"accuracy": 0.8, "validation_mismatched/accuracy": 0.1})
    second = [found.model_copy(update={"split": "validation_mismatched"}) for found in run.metrics]
    run = run.model_copy(update={"metrics": [*run.metrics, *second]})
    assert {found.split for found in evaluations(run, METRICS["accuracy"])} == {"validation"}


def test_a_method_keeps_its_color_whatever_is_beside_it() -> None:
    few, many = method_styles([GLORA]), method_styles(["LoRA", "DoRA", "PiSSA", f"{GLORA} (beta=0.5)", GLORA])
    assert few[GLORA] == many[GLORA]
    assert len({color for color, _ in many.values()}) == 5
    crowd = method_styles(["LoRA", "AdaLoRA", GLORA, *(f"method {i}" for i in range(15))])
    assert len(set(crowd.values())) == 18, "with more methods than colors, the markers tell them apart"
    assert len(LIGHT["series"]) == len(MARKERS)
