"""The study: arms share the runs that they have in common, and its differences and corrections are those of the textbooks."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.study import training
from benchmarks.study.analysis import by_seed, compare, family, holm, pool
from benchmarks.study.design import ALTERNATE, ARMS, TASKS, TUNING_SEED, Run, chosen, run_of, runs
from benchmarks.study.records import HERE, README, Records, append, best_rate, path_of, read
from benchmarks.study.report import summary, write_report
from benchmarks.study.tasks import measure_retrieval
from benchmarks.study.training import Bench, decode, encode
from scipy import stats

TASK = "sst2"
MIDDLE = TASKS[TASK].learning_rate


def record(run: Run, loss: float, *, compressed: bool = False, selection: float | None = None) -> dict[str, Any]:
    losses = torch.linspace(0.5, 1.5, 40) * loss
    return {
        **run._asdict(),
        "compressed": compressed,
        "parameters": run.rank * 1000,
        "seconds": 1.0,
        "selection": [9.0, loss if selection is None else selection],
        "epoch": 2,
        "loss": loss,
        "score": 1 - loss,
        "losses": encode(losses),
        "environment": {"processor": "any"},
    }


def records_of(losses: dict[tuple[str, int], float], size: float = 2.0) -> Records:
    """(arm, seed) -> loss, all at the middle learning rate, which tuning chooses."""
    found: Records = {}
    for arm in {arm for arm, _ in losses}:
        for factor in ARMS[arm].rates:
            run = run_of(TASK, arm, size, factor * MIDDLE, TUNING_SEED)
            found[run, ARMS[arm].compressed] = record(
                run, 1.0, selection=abs(math.log(factor)), compressed=ARMS[arm].compressed
            )
    for (arm, seed), loss in losses.items():
        run = run_of(TASK, arm, size, MIDDLE, seed)
        found[run, ARMS[arm].compressed] = record(run, loss, compressed=ARMS[arm].compressed)
    return found


# The runs


def test_arms_share_the_runs_that_they_have_in_common() -> None:
    wide, uniform = run_of(TASK, "wide", 2.0, 1e-3, 0), run_of(TASK, "uniform", 8.0, 1e-3, 0)
    assert wide == uniform == run_of(TASK, "compressed", 2.0, 1e-3, 0)
    assert run_of(TASK, "uniform", 2.0, 1e-3, 0).rank == 2


def test_half_a_rank_is_every_second_matrix_for_lora_and_half_the_budget_for_what_allocates() -> None:
    assert run_of(TASK, "uniform", 0.5, 1e-3, 0)[1:4] == ("lora", 1, ALTERNATE)
    assert run_of(TASK, "spectrum", 0.5, 1e-3, 0).method.endswith(":average_rank=0.5")


def test_every_arm_ends_with_the_parameters_of_uniform_lora() -> None:
    names = [f"layer.{i}" for i in range(36)]
    for arm, design in ARMS.items():
        if design.method == "lora" and arm not in ("wide", "compressed"):
            for size in design.sizes:
                run = run_of(TASK, arm, size, 1e-3, 0)
                assert run.rank * len(chosen(names, run.where)) == 36 * size, (arm, size)
    assert chosen(names, ARMS["middle_third"].where) == names[12:24]
    assert chosen(names, ARMS["top_half"].where) == names[18:]


def test_what_needs_a_learning_rate_waits_for_its_tuning() -> None:
    first = list(runs([TASK], lambda *_: None))
    assert {run.seed for run in first} == {TUNING_SEED}
    known = list(runs([TASK], lambda _task, arm, _size: MIDDLE if arm == "uniform" else None))
    assert {run.seed for run in known if run.rank == 2 and run.method == "lora"} == {TUNING_SEED, *TASKS[TASK].seeds}


def test_the_first_cell_of_every_task_comes_before_the_second_of_any() -> None:
    order = [(run.task, run.rank) for run in runs(["sst2", "gsm8k"], lambda *_: None) if run.method == "lora"]
    assert order.index(("gsm8k", 8)) < order.index(("sst2", 32))


def test_tuning_takes_the_least_loss_of_the_chosen_epoch_on_the_selection_split() -> None:
    found = records_of({("spectrum", 0): 0.4})
    assert best_rate(found, TASK, "spectrum", 2.0) == MIDDLE
    del found[run_of(TASK, "spectrum", 2.0, 2 * MIDDLE, TUNING_SEED), False]
    assert best_rate(found, TASK, "spectrum", 2.0) is None


def test_records_survive_a_line_that_is_cut_off(tmp_path: Path) -> None:
    made = record(run_of(TASK, "uniform", 2.0, MIDDLE, 3), 0.5)
    append([made, {**made, "compressed": True}], tmp_path)
    with path_of(TASK, tmp_path).open("a") as file:
        file.write(json.dumps(made)[:50])
    assert set(read(TASK, tmp_path)) == {(Run(**{k: made[k] for k in Run._fields}), c) for c in (False, True)}


def test_losses_are_kept_to_half_precision() -> None:
    losses = torch.rand(1000) * 5
    assert np.allclose(decode(encode(losses)), losses.numpy(), rtol=1e-3)


# The analysis


def test_a_difference_is_paired_by_seed_and_tested_by_students_t() -> None:
    noise = [0.30, 0.50, 0.70, 0.40]
    found = records_of(
        {("uniform", i): level for i, level in enumerate(noise)}
        | {("spectrum", i): level * factor for i, (level, factor) in enumerate(zip(noise, (0.9, 0.8, 0.85, 0.95)))}
    )
    (each,) = [c for c in family(TASK, found) if c.other == "uniform"]
    logs = np.log([0.9, 0.8, 0.85, 0.95])
    assert each.log_loss.mean == pytest.approx(logs.mean())
    assert each.p == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)
    assert each.score is not None
    assert each.score.mean > 0
    low, high = each.by_examples
    ratio = np.mean(np.array(noise) * [0.9, 0.8, 0.85, 0.95]) / np.mean(noise) - 1
    assert low < ratio < high < 0
    assert (low + high) / 2 == pytest.approx(ratio, rel=1e-2)


def test_the_smallest_effect_is_shown_in_four_of_five_draws() -> None:
    draw = random.Random(0)
    shown = total = 0
    for _ in range(400):
        noise = {i: draw.gauss(0, 0.02) for i in range(10)}
        found = records_of(
            {("uniform", i): 1.0 for i in noise} | {("spectrum", i): math.exp(v) for i, v in noise.items()}
        )
        each = compare(
            TASK, 2.0, "spectrum", "uniform", *(by_seed(found, TASK, arm, 2.0) for arm in ("spectrum", "uniform"))
        )
        assert each is not None
        assert each.log_loss.smallest is not None
        smallest = (stats.t.ppf(0.975, 9) + stats.t.ppf(0.8, 9)) * 0.02 / math.sqrt(10)
        shifted = [v + smallest for v in noise.values()]
        shown += stats.ttest_1samp(shifted, 0).pvalue < 0.05
        total += each.log_loss.smallest / 400
    assert total == pytest.approx(smallest, rel=0.05)
    assert 0.74 < shown / 400 < 0.86


def test_holms_correction() -> None:
    """The step-down procedure by hand: 4·0.01, 3·0.02, then never below the one before, and 1·0.04."""
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_tasks_are_pooled_with_welchs_degrees_of_freedom() -> None:
    found = records_of(
        {("uniform", i): 1.0 for i in range(4)} | {("spectrum", i): v for i, v in enumerate((0.9, 0.8, 0.85, 0.95))}
    )
    (each,) = [c for c in family(TASK, found) if c.other == "uniform"]
    both = pool([each, dataclasses.replace(each, task="other")])
    assert both is not None
    assert both.mean == pytest.approx(each.log_loss.mean)
    error = np.std(each.log_loss.values, ddof=1) / math.sqrt(4)
    assert both.high - both.mean == pytest.approx(stats.t.ppf(0.975, 6) * error / math.sqrt(2))
    assert pool([each]) is None


def test_the_report_says_where_no_difference_was_shown(tmp_path: Path) -> None:
    found = records_of(
        {("uniform", i): 0.5 + i / 10 for i in range(4)}
        | {("spectrum", i): (0.5 + i / 10) * (1 + (-1) ** i / 50) for i in range(4)}
    )
    append(list(found.values()), tmp_path)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "no difference shown" in text
    assert "| spectrum, from 4r̄ | 0.0015 | 4 |" in text
    assert (tmp_path / "frontier.png").stat().st_size > 1000


# One run


@pytest.fixture
def bench(tiny_deberta: Path, study_task: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setitem(training.TASKS, "rte", study_task)
    return Bench("rte", Path(), str(tiny_deberta))


def test_a_run_measures_what_is_held_out_at_the_best_epoch(bench: Bench) -> None:
    run = Run("rte", "glora:rule=spectrum:budget=parameters", 1, "all", 1e-2, 0)
    (made,) = bench.make(run)
    assert made["parameters"] < made["parameters_before"]
    assert made["selection"][made["epoch"] - 1] == min(made["selection"])
    assert decode(made["losses"]).mean() == pytest.approx(made["loss"], rel=1e-3)
    (again,) = bench.make(run)
    assert {**again, "seconds": 0} == {**made, "seconds": 0}, "the same bits"


def test_the_ceiling_is_also_measured_compressed(bench: Bench) -> None:
    whole, smaller = bench.make(Run("rte", "lora", 4, "all", 1e-2, 0))
    assert (whole["compressed"], smaller["compressed"]) == (False, True)
    assert smaller["parameters"] <= whole["parameters"] / 4
    assert smaller["losses"] != whole["losses"]


def test_retrieval_counts_the_place_of_the_own_docstring() -> None:
    class Encoder(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return type("Output", (), {"last_hidden_state": torch.nn.functional.one_hot(input_ids, 8).float()})

    rows = [{"a": [1], "b": [1]}, {"a": [2], "b": [3]}, {"a": [4], "b": [2]}]

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row[k] for k in "ab" for row in rows])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    found = measure_retrieval(Encoder(), rows, collate)  # type: ignore[arg-type]
    assert found.scores is not None
    assert found.scores.tolist() == pytest.approx([1, 1 / 3, 1 / 3])


def test_readme_has_the_table_of_the_records(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    for task in TASKS:
        if path_of(task).exists():
            (tmp_path / path_of(task).name).write_bytes(path_of(task).read_bytes())
    write_report(tmp_path, page)
    assert page.read_text(encoding="utf-8") == README.read_text(encoding="utf-8"), (
        "run python -m benchmarks.study report"
    )
    assert (tmp_path / "report.md").read_bytes() == (HERE / "report.md").read_bytes()


def test_the_summary_shows_no_arm_with_fewer_than_three_seeds() -> None:
    records = records_of(
        {("uniform", seed): 0.5 for seed in range(3)}
        | {("spectrum", seed): 0.4 + seed / 100 for seed in range(3)}
        | {("wide", 0): 0.3}
    )
    _, _, *rows = summary({TASK: records})
    assert [row.split(" | ")[0] for row in rows] == [
        "| SST-2, r = 2, rates tuned, 3 seeds",
        "| SST-2, r = 2, one learning rate, 3 seeds",
    ]
    assert all("−18.0 % [" in row and row.count("%") == 3 for row in rows), rows
