"""Pictures: what is drawn is right, and every shape of study can be drawn."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from glora.experiments.records.schema import EpochMetrics, NormSample, RunRecord
from glora.experiments.report import pictures
from glora.experiments.report.content import heading
from glora.experiments.report.metric_curves import evaluations
from glora.experiments.report.norm_curves import corrected_norms, same_norms
from glora.experiments.report.picture_style import OKABE_ITO, method_styles
from glora.experiments.report.rank_map import has_chosen_ranks, mean_ranks
from glora.experiments.report.summary import GroupSummary, summarise
from unit.experiments.synthetic_records import bert_shapes, finished_run, study

METHODS = ("lora", "adalora", "glora")


def group_of(records: list[RunRecord]) -> GroupSummary:
    (group,) = summarise(records)
    return group


def draw_pictures(group: GroupSummary, folder: Path) -> list[pictures.Picture]:
    return pictures.draw_pictures(heading(group), pictures.charts(group), folder)


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:24])
    return width, height


class Drawn:
    """Figures as they were saved, with the text and the lines that they hold."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def axes(self, name: str) -> list[Axes]:
        (figure,) = (figure for file, figure in self.figures.items() if name in file)
        return figure.axes

    def texts(self, name: str) -> list[str]:
        return [text.get_text() for axes in self.axes(name) for text in axes.texts]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    found = Drawn()
    save = Figure.savefig

    def keep(figure: Figure, path: Path, **settings: Any) -> None:
        found.figures[Path(path).name] = figure
        save(figure, path, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return found


@pytest.mark.parametrize(
    "records",
    [
        pytest.param(study(METHODS, (0, 1, 2)), id="3 methods, 3 seeds"),
        pytest.param(study(METHODS, (0,)), id="3 methods, 1 seed"),
        pytest.param(study(METHODS, (0,), shapes=bert_shapes(12)), id="12 layers"),
        pytest.param(study(METHODS, (0, 1), shapes={"fc_in": (8, 4), "fc_out": (2, 8)}), id="no layers"),
        pytest.param(
            study(
                ("lora", "glora"),
                (0,),
                shapes={
                    f"model.layers.{i}.experts.{e}.{p}": (8, 8)
                    for i in (0, 1)
                    for e in range(9)
                    for p in ("up", "down")
                },
            ),
            id="experts",
        ),
        pytest.param(study(("glora",), (0,), shapes={f"m{chr(97 + i)}": (8, 8) for i in range(20)}), id="20 types"),
    ],
)
def test_every_shape_of_study_can_be_drawn(tmp_path: Path, records: list[RunRecord]) -> None:
    pictures = draw_pictures(group_of(records), tmp_path)
    assert sorted(picture.path for picture in pictures) == sorted(tmp_path.iterdir())
    names = " ".join(picture.path.name for picture in pictures)
    assert "time" in names
    assert "ranks-glora" in names
    assert "norms-glora" in names
    assert "ranks-lora" not in names, "uniform ranks are nothing to look at"
    for picture in pictures:
        width, height = png_size(picture.path)
        assert 600 < width < 3000
        assert 400 < height < 4000
        assert picture.caption.endswith(".")
        assert picture.caption.count(". ") <= 3


def test_ten_thousand_matrices_are_drawn_in_bounded_size_and_time(tmp_path: Path) -> None:
    began = time.process_time()
    drawn = draw_pictures(group_of(study(("glora",), (0,), shapes=bert_shapes(1667), steps_per_epoch=3)), tmp_path)
    assert len(drawn) == 3
    assert all(max(png_size(picture.path)) < 7000 for picture in drawn)
    assert time.process_time() - began < 60


def test_runs_without_evaluations_norms_or_ranks_have_no_pictures(tmp_path: Path) -> None:
    bare = finished_run(method="lora").model_copy(update={"metrics": [], "ranks": {}})
    assert draw_pictures(group_of([bare]), tmp_path) == []


def test_the_rank_map_shows_the_mean_rank_of_each_matrix(tmp_path: Path, drawn: Drawn) -> None:
    runs = [
        finished_run(method="glora", seed=seed).model_copy(
            update={
                "ranks": {"layer.0.q": first, "layer.0.v": 3, "layer.1.q": 20},
                "initial_ranks": {"layer.0.q": 8, "layer.0.v": 8, "layer.1.q": 8, "layer.1.v": 8},
            }
        )
        for seed, first in ((0, 4), (1, 5))
    ]
    group = group_of(runs)
    assert mean_ranks(group.methods[0]) == {"layer.0.q": 4.5, "layer.0.v": 3, "layer.1.q": 20, "layer.1.v": 0}
    draw_pictures(group, tmp_path)
    heat_map = drawn.axes("ranks-glora")[0]
    cells = {text.get_position(): text.get_text() for text in heat_map.texts}
    assert cells == {(0, 0): "4.5", (1, 0): "3", (0, 1): "20", (1, 1): "0"}
    assert [label.get_text() for label in heat_map.get_xticklabels()] == ["q", "v"]
    assert [label.get_text() for label in heat_map.get_yticklabels()] == ["0", "1"]


def test_rank_maps_of_a_group_share_their_colours(tmp_path: Path, drawn: Drawn) -> None:
    draw_pictures(group_of(study(METHODS, (0,))), tmp_path)
    limits = {drawn.axes(f"ranks-{method}")[0].images[0].get_clim() for method in ("adalora", "glora")}
    assert len(limits) == 1
    norm = drawn.axes("ranks-glora")[0].images[0].norm
    assert norm(8) == pytest.approx(0.5), "uniform LoRA's rank is the middle of the scale"


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


def test_the_norm_panels_draw_every_matrix_and_the_median_of_their_type(tmp_path: Path, drawn: Drawn) -> None:
    levels = {"layer.0.q": 1.0, "layer.1.q": 2.0, "layer.2.q": 6.0, "layer.0.v": 3.0}
    norms = [NormSample(step=s, values={k: v * (1 - 0.9**s) for k, v in levels.items()}) for s in (1, 2, 3)]
    run = finished_run(method="glora").model_copy(update={"norms": norms})
    draw_pictures(group_of([run]), tmp_path)
    query, value = drawn.axes("norms-glora")
    drawn_levels = [float(line.get_ydata()[-1]) for line in query.lines]
    assert drawn_levels == pytest.approx([1, 2, 6, 3, 1, 2, 6, 2])  # all in grey, the type's own, their median
    assert len(value.lines) == 4 + 1, "the median of one matrix is that matrix"
    assert query.get_title("left") == "q"


def test_a_control_with_the_same_warm_up_needs_no_second_picture_of_it(tmp_path: Path) -> None:
    glora = finished_run(method="glora")
    shuffled = finished_run(method="shuffled").model_copy(update={"norms": glora.norms})
    assert same_norms(group_of([glora]).methods[0], group_of([shuffled]).methods[0])
    names = [picture.path.name for picture in draw_pictures(group_of([glora, shuffled]), tmp_path)]
    assert sum("norms" in name for name in names) == 1
    other = finished_run(method="shuffled", seed=0, beta=0.5)
    assert not same_norms(group_of([glora]).methods[0], group_of([other]).methods[0])


def test_the_time_picture_joins_means_and_marks_every_seed(tmp_path: Path, drawn: Drawn) -> None:
    def run(seed: int, *points: tuple[float, float]) -> RunRecord:
        metrics = [
            EpochMetrics(epoch=i, step=10 * i, split="validation", train_seconds=s, values={"accuracy": value})
            for i, (s, value) in enumerate(points, start=1)
        ]
        return finished_run(method="lora", seed=seed, final={"accuracy": 0.5}).model_copy(update={"metrics": metrics})

    draw_pictures(group_of([run(0, (10, 0.5), (20, 0.7)), run(1, (14, 0.6), (28, 0.9))]), tmp_path)
    course, end = drawn.axes("time")
    assert_allclose(course.lines[0].get_xydata(), [(12, 55), (24, 80)])
    assert_allclose(course.collections[0].get_offsets(), [(10, 50), (14, 60), (20, 70), (28, 90)])
    assert_allclose(end.collections[0].get_offsets(), [(20, 70), (28, 90)])
    assert course.get_ylabel() == "Accuracy (%)"


def test_secondary_splits_are_not_on_the_curve() -> None:
    run = finished_run(final={"accuracy": 0.8, "validation_mismatched/accuracy": 0.1})
    second = [found.model_copy(update={"split": "validation_mismatched"}) for found in run.metrics]
    run = run.model_copy(update={"metrics": [*run.metrics, *second]})
    assert {found.split for found in evaluations(run, "accuracy")} == {"validation"}


def test_uniform_ranks_are_not_chosen_ones() -> None:
    assert not has_chosen_ranks(group_of([finished_run(method="lora")]).methods[0])
    assert has_chosen_ranks(group_of([finished_run(method="glora")]).methods[0])


def test_a_method_keeps_its_colour_whatever_stands_beside_it() -> None:
    few, many = method_styles(["glora"]), method_styles(["lora", "dora", "pissa", "glora (beta=0.5)", "glora"])
    assert few["glora"] == many["glora"]
    assert len({colour for colour, _ in many.values()}) == 5
    assert {colour for colour, _ in many.values()} <= set(OKABE_ITO)
    crowd = method_styles(["lora", "adalora", "glora", *(f"method {i}" for i in range(15))])
    assert len(set(crowd.values())) == 18, "with more methods than colours, the markers tell them apart"


def test_the_users_matplotlibrc_does_not_change_a_picture(tmp_path: Path) -> None:
    import matplotlib

    group = group_of(study(("lora", "glora"), (0,)))
    plain = [picture.path.read_bytes() for picture in draw_pictures(group, tmp_path / "plain")]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        styled = [picture.path.read_bytes() for picture in draw_pictures(group, tmp_path / "styled")]
        assert matplotlib.rcParams["font.size"] == 30, "the user's settings are left as they were"
    assert plain == styled
