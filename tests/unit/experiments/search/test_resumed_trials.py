"""A search that is interrupted, continued, or started again with other settings."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from glora.experiments.search.record import search_name
from glora.experiments.search.study import StudyMismatchError
from glora.experiments.search.trials import plan_tuned_runs
from glora.experiments.search.view import describe_outcomes, describe_search
from glora.experiments.terminal import Terminal
from unit.experiments.plan_case import FakeRuns, change_weights, raising
from unit.experiments.search.plan_case import RANGES, search
from unit.experiments.search.search_case import quick_storage


def interrupted() -> FakeRuns:
    """Ctrl-C in the run after two others."""
    runs = FakeRuns()
    runs.accuracy = raising(KeyboardInterrupt(), lambda _: len(runs.made) == 2)
    return runs


def test_an_interrupted_search_goes_on_with_the_values_it_would_have_had(plan, storage, tmp_path: Path) -> None:
    """A sampler that is seeded once would draw the first values again."""
    whole, first, rest = FakeRuns(), interrupted(), FakeRuns()
    (tmp_path / "whole").mkdir()
    search(plan(), quick_storage(tmp_path / "whole"), whole)
    with pytest.raises(KeyboardInterrupt):
        search(plan(), storage, first)
    search(plan(), quick_storage(tmp_path), rest)
    assert len(first.made) + len(rest.made) == 8, "what was finished is not made again"
    tried = [
        {(c.method, c.learning_rate, c.allocation.beta) for c in made} for made in (whole.made, first.made + rest.made)
    ]
    at_random = {(c.method, c.learning_rate, c.allocation.beta) for c in (*whole.made[:2], *whole.made[4:6])}
    assert at_random <= tried[1]
    assert len(tried[1]) == 8


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            {"ranges": {**RANGES, "beta": "0.5-0.99"}},
            "range of beta: it has 0.8 to 0.99 (linear); now 0.5",
        ),
        ({"trials": 5}, "trials: it has 4; now 5"),
        ({"held_out": 0.25}, "held_out: it has 0.2; now 0.25"),
        ({"settings": {"train_limit": 100}}, "data: it has "),
        ({"settings": {"batch_size": 16}}, "batch_size: it has 32; now 16"),
        ({"seed": 1}, "sampler: it has TPE, seed 0"),
    ],
)
def test_another_search_of_the_same_name_is_refused(plan, storage, change: dict, difference: str) -> None:
    search(plan(methods=("glora",)), storage)
    runs = FakeRuns()
    with pytest.raises(StudyMismatchError) as caught:
        search(plan(methods=("glora",), **change), storage, runs)
    assert difference in str(caught.value)
    assert not runs.made


def test_trials_of_another_model_in_the_same_folder_are_not_reused(
    plan, storage, tiny_deberta: Path, tmp_path: Path
) -> None:
    settings = {"model": str(shutil.copytree(tiny_deberta, tmp_path / "model"))}
    search(plan(settings=settings), storage)
    change_weights(tmp_path / "model")
    runs = FakeRuns()
    with pytest.raises(StudyMismatchError, match=r"weights: it has sha256:\w+; now sha256:\w+"):
        search(plan(settings=settings), storage, runs)
    assert not runs.made


def test_models_whose_paths_end_alike_have_their_own_studies_and_rows(
    plan, storage, tiny_deberta: Path, tmp_path: Path
) -> None:
    models = [str(shutil.copytree(tiny_deberta, tmp_path / name / "final")) for name in "ab"]
    pair = {**plan().pairs[0].settings}
    planned = plan(methods=("lora",), trials=1, pairs=[{**pair, "model": model} for model in models])
    outcomes = search(planned, storage)
    assert planned.study_names == [f"a search / rte / {name}/final / lora" for name in "ab"]
    console = Terminal(file=io.StringIO(), width=200)
    for shown in (describe_search(planned, "a database"), describe_outcomes(outcomes)):
        console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert [text.count(f"{name}/final") for name in "ab"] == [3, 3]
    assert str(tmp_path) not in text.replace(str(planned.output), "")


def test_more_seeds_are_run_without_a_new_search(plan, storage) -> None:
    search(plan(seeds=(0, 1)), storage)
    runs = FakeRuns()
    planned = plan(seeds=(1, 0))
    (tuned,) = plan_tuned_runs(planned, search(planned, storage, runs))
    assert not runs.made
    assert len(tuned.runs) == 4


# The runs that are reported, and the record


def test_a_folder_that_was_renamed_goes_on_with_its_search(plan, storage, tmp_path: Path) -> None:
    assert search_name(tmp_path / "out") == "out"
    with pytest.raises(KeyboardInterrupt):
        search(plan(), storage, interrupted())
    (tmp_path / "out").rename(tmp_path / "renamed")
    assert search_name(tmp_path / "renamed") == "a search"
    assert search_name(tmp_path / "renamed", "another") == "another"
    rest = FakeRuns()
    search(plan(output=tmp_path / "renamed"), quick_storage(tmp_path), rest)
    assert len(rest.made) == 6
