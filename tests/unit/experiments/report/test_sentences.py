"""The conclusion: names, sizes of differences and what learned nothing, against cases worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from glora.experiments.records.schema import RunRecord
from glora.experiments.report.sentences import caveats, conclusion
from glora.experiments.report.summary import summarise
from glora.experiments.report.tables import results_table
from unit.experiments.synthetic_records import finished_run

LORA = (0.80, 0.82, 0.84)


def runs(
    method: str, values: Sequence[float], *, majority: float | None = None, metric: str = "accuracy", **settings: object
) -> list[RunRecord]:
    baseline = {} if majority is None else {metric: majority}
    made = [
        finished_run(method=method, seed=seed, final={metric: value}, **settings) for seed, value in enumerate(values)
    ]
    return [run.model_copy(update={"baseline": baseline}) for run in made]


def sentences(*made: list[RunRecord]) -> tuple[str, ...]:
    (group,) = summarise([run for each in made for run in each])
    return conclusion(group)


def test_it_names_what_was_compared_and_the_smallest_difference_that_could_be_seen() -> None:
    """Differences 1, 2, 3 points: (4.3027 + 1.0607) · 1 / sqrt(3) = 3.10."""
    first, second = sentences(runs("lora", LORA), runs("glora", (0.81, 0.84, 0.87)))
    assert re.match(
        r"LoRA and GLoRA .*all-MiniLM-L6-v2 .*stdlib-docs \(3 seeds each\), .*Accuracy .*500 examples", first
    )
    assert re.match("No difference .*LoRA .*GLoRA .*of 3.1 points .*80 % power", second)


def test_differences_that_were_shown_come_with_interval_and_size() -> None:
    spectrum = runs("glora:rule=spectrum", (0.81, 0.832, 0.848), rule="spectrum")
    _, better, worse = sentences(runs("lora", LORA), spectrum, runs("adalora", (0.7, 0.721, 0.742)))
    assert re.match(r"Better .*LoRA: GLoRA by spectrum .*1\.0 points \(0\.5 to 1\.5\) .*100 %", better)
    assert re.match(r"Worse .*LoRA: AdaLoRA .*9\.9 points \(9\.7 to 10\.1\)", worse)


def test_less_loss_is_better() -> None:
    _, second = sentences(runs("lora", (2.0, 2.1, 2.2), metric="loss"), runs("glora", (1.0, 1.11, 1.2), metric="loss"))
    assert re.match(r"Better .*LoRA: GLoRA .*0\.997 \(", second)


@pytest.mark.parametrize(("majority", "seeds"), [(0.79, None), (0.80, "0"), (0.83, "0, 1")])
def test_a_run_that_is_not_above_the_majority_class_learned_nothing(majority: float, seeds: str | None) -> None:
    made = [*runs("lora", LORA, majority=majority), *runs("glora", (0.9, 0.9, 0.9), majority=majority)]
    (group,) = summarise(made)
    said = [sentence for sentence in conclusion(group) if sentence.startswith("Learned nothing")]
    table = results_table(group)
    assert table.rows[-1][0] == "majority class"
    if seeds is None:
        assert said == []
        assert "learned?" not in table.columns
    else:
        (sentence,) = said
        assert re.search(rf"LoRA \(seed {seeds}\), .*{100 * majority:.1f} % .*majority class", sentence)
        assert str(table.rows[0][1]) == f"nothing in seed {seeds}"


def test_a_method_whose_ranks_were_never_allocated_is_named() -> None:
    lora, glora = runs("lora", LORA), runs("glora", LORA)
    glora[1] = glora[1].model_copy(update={"reallocated_at": None, "ranks": glora[1].initial_ranks})
    (group,) = summarise([*lora, *glora])
    (found,) = [line for line in caveats(group) if "nothing was allocated" in line]
    assert found.startswith("GLoRA")
    assert "(seed 1)" in found
    (whole,) = summarise([*lora, *runs("glora", LORA)])
    assert not any("nothing was allocated" in line for line in caveats(whole))


def test_sizes_are_compared_with_the_row_that_they_are_shares_of() -> None:
    slow, fast = runs("lora", LORA, learning_rate=1e-3), runs("lora", LORA, learning_rate=2e-3)
    glora = [
        run.model_copy(update={"adapter_parameters_after": 2 * (run.adapter_parameters_after or 0)})
        for run in runs("glora", LORA, learning_rate=2e-3)
    ]
    (group,) = summarise([*slow, *fast, *glora])
    (found,) = [line for line in caveats(group) if line.startswith("The sizes differ: GLoRA")]
    assert "LoRA (learning_rate=0.002)" in found.partition("than")[2]
