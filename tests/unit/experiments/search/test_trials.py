"""A search from its plan to the runs that are reported, with runs that are made without training unless a test says so."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from glora.experiments.config import RunConfig
from glora.experiments.records.schema import EpochMetrics, RunRecord
from glora.experiments.records.store import RecordError
from glora.experiments.report.tables import tuning_table
from glora.experiments.search.plan import MethodSearch
from glora.experiments.search.record import read_search_record, write_search_record
from glora.experiments.search.storage import SharedStorage
from glora.experiments.search.trials import SearchFailedError, plan_tuned_runs, run_trials, search_record
from glora.experiments.search.view import describe_outcomes
from glora.experiments.terminal import Terminal
from glora.experiments.training import run as training
from glora.experiments.training.metrics import DivergedError
from glora.experiments.training.progress import RunProgress
from unit.experiments.plan_case import BROKEN, FakeRuns, made_record, raising
from unit.experiments.search.plan_case import RANGES, search
from unit.experiments.search.search_case import LOOK

# What is searched


def test_each_method_is_tuned_in_the_settings_it_looks_at_and_equally_often(plan, storage) -> None:
    runs = FakeRuns()
    outcomes = search(
        plan(methods=("lora", "adalora", "glora"), ranges={**RANGES, "total_rank": "24,48"}), storage, runs
    )
    assert [set(outcome.values) for outcome in outcomes] == [
        {"learning_rate"},
        {"learning_rate", "total_rank"},
        {"learning_rate", "beta", "total_rank"},
    ]
    assert [sum(config.method == name for config in runs.made) for name in ("lora", "adalora", "glora")] == [4, 4, 4]
    assert all(1e-4 <= config.learning_rate <= 1e-2 for config in runs.made)
    assert {config.allocation.total_rank for config in runs.made if config.method == "glora"} <= {24, 48}
    assert {config.held_out for config in runs.made} == {0.2}


def test_methods_begin_with_the_same_values_and_a_trial_has_a_seed_that_is_not_reported(plan, storage) -> None:
    runs = FakeRuns()
    search(plan(seeds=(3, 5)), storage, runs)
    rates = {name: [c.learning_rate for c in runs.made if c.method == name] for name in ("lora", "glora")}
    assert rates["lora"][:2] == rates["glora"][:2]
    assert len(set(rates["lora"])) == 4
    assert {config.seed for config in runs.made} == {6}


def test_a_search_never_reads_what_is_reported(plan, storage, glue_folder: Path, tmp_path: Path) -> None:
    """Planned, and trained for real, where the dev file is not even readable; only the runs that are reported need it."""
    broken = shutil.copytree(glue_folder / "RTE", tmp_path / "RTE")
    (broken / "dev.tsv").write_text("this is not data\n")
    planned = plan(settings={"data_dir": str(tmp_path), "epochs": 1}, methods=("lora",), trials=1)
    outcomes = search(planned, storage, training.run)
    assert outcomes[0].counts["complete"] == 1
    with pytest.raises(ValueError, match=r"dev\.tsv"):
        plan_tuned_runs(planned, outcomes)


def test_the_default_is_learning_rate_beta_total_rank_and_warmup_steps(plan, storage) -> None:
    lora, glora = plan(ranges={}).studies
    assert list(lora.space) == ["learning_rate"]
    assert glora.space == {
        "learning_rate": "5e-05 to 0.005 (log)",
        "beta": "0.8 to 0.99 (linear)",
        "total_rank": "one of 24, 36, 48",  # 12 matrices of rank 4, and never more than uniform LoRA has
        "warmup_steps": "0.1 to 0.5 (linear)",
    }
    assert list(plan(ranges={}, settings={"learning_rate": 1e-3, "beta": 0.9}).studies[0].space) == [
        "total_rank",
        "warmup_steps",
    ], "what has a value is not searched, and lora has nothing left to search"


def test_a_method_with_nothing_to_search_is_run_with_its_settings(plan, storage, tmp_path: Path) -> None:
    planned = plan(ranges={"beta": "0.8-0.99"}, settings={"learning_rate": 1e-3})
    assert [study.method.name for study in planned.studies] == ["glora"]
    (tuned,) = plan_tuned_runs(planned, search(planned, storage))
    assert [(run.config.method, run.config.seed) for run in tuned.runs] == [
        ("lora", 0),
        ("glora", 0),
        ("lora", 1),
        ("glora", 1),
    ]


# How trials end


def test_the_best_is_the_one_that_is_run(plan, storage, tmp_path: Path) -> None:
    runs = FakeRuns()
    planned = plan()
    outcomes = search(planned, storage, runs)
    for outcome in outcomes:
        name = outcome.search.method.name
        best = min((c for c in runs.made if c.method == name), key=lambda config: abs(config.learning_rate - 1e-3))
        assert outcome.values["learning_rate"] == best.learning_rate
    (tuned,) = plan_tuned_runs(planned, outcomes)
    assert {run.config.held_out for run in tuned.runs} == {None}
    assert {(r.config.method, r.config.learning_rate) for r in tuned.runs} == {
        (outcome.search.method.name, outcome.values["learning_rate"]) for outcome in outcomes
    }
    assert {run.config.allocation.beta for run in tuned.runs if run.config.method == "lora"} == {0.9}


def test_a_loss_is_minimised(plan, storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_run(config: RunConfig, _task: object = None, *, progress: RunProgress) -> Any:
        return made_record(config, 0.0, final={"loss": config.learning_rate}, primary_metric="loss")

    monkeypatch.setattr(MethodSearch, "metric", "loss")
    (outcome,) = search(plan(methods=("lora",)), storage, make_run)
    rates = [trial.params["learning_rate"] for trial in outcome.trials]
    assert outcome.values["learning_rate"] == min(rates)


def test_of_equal_trials_the_first_is_the_best_for_every_process(plan, storage) -> None:
    (outcome,) = search(plan(methods=("lora",)), storage, FakeRuns(lambda _config: 0.5))
    assert outcome.best is not None
    assert outcome.best.number == 0


def test_a_trial_is_shown_as_a_run_is(plan, storage) -> None:
    """Reports of a running trial reach the progress display."""
    events = [
        "run_begins",
        "preparing",
        "step",
        "evaluation_begins",
        "evaluation_batch",
        "evaluated",
        "say",
        "show_outcome",
    ]
    shown: list[str] = []

    class Shown(RunProgress):
        def __getattribute__(self, name: str) -> Any:
            shown.extend([name] if name in events else [])
            return super().__getattribute__(name)

    def make_run(config: RunConfig, _task: object = None, *, progress: RunProgress) -> RunRecord:
        values = {"accuracy": 0.5}
        progress.run_begins(config, 1)
        progress.preparing("singular vectors")
        progress.step()
        progress.evaluation_begins("tuning", 1)
        progress.evaluation_batch()
        progress.evaluated(EpochMetrics(epoch=1, step=1, split="tuning", train_seconds=1.0, values=values))
        progress.say("ranks changed")
        return made_record(config, 0.5)

    run_trials(plan(methods=("lora",), trials=1), storage, Shown(), make_run=make_run, look_after=LOOK)
    assert shown == events


def test_a_bad_trial_is_stopped_early_but_not_before_the_ranks_are_allocated(plan, storage) -> None:
    """The trials that come after the first ones are worse than all before."""
    runs, made = FakeRuns(epochs=4), []

    def worse_and_worse(config: RunConfig) -> float:
        made.append(config)
        return 1 / len([c for c in made if c.method == config.method])

    runs.accuracy = worse_and_worse
    ranges = {"learning_rate": "1e-4-1e-2", "warmup_steps": "0.6,0.61"}  # of 4 epochs: the third is the first to judge
    outcomes = search(plan(trials=6, ranges=ranges, settings={"epochs": 4}), storage, runs)
    for outcome, epochs in zip(outcomes, (1, 3)):
        assert outcome.counts == {"complete": 2, "stopped early": 4, "failed": 0}
        stopped = [trial for trial in outcome.trials if trial.state == TrialState.PRUNED]
        assert {len(trial.intermediate_values) for trial in stopped} == {epochs}


def test_the_last_epoch_is_not_cut_off(plan, storage) -> None:
    values = iter([0.9, 0.9, 0.1, 0.1])
    (outcome,) = search(plan(methods=("lora",)), storage, FakeRuns(lambda _config: next(values), epochs=1))
    assert outcome.counts == {"complete": 4, "stopped early": 0, "failed": 0}


def test_a_trial_that_diverges_counts_and_the_search_goes_on(plan, storage) -> None:
    error = DivergedError("the training loss is nan by step 3", advice="Lower the learning rate")
    accuracy = raising(error, lambda config: config.learning_rate > 1e-3)
    (outcome,) = search(plan(methods=("lora",), trials=8), storage, FakeRuns(accuracy))
    diverged = [trial for trial in outcome.trials if "error" in trial.user_attrs]
    assert len(outcome.trials) == 8
    assert outcome.counts["failed"] == len(diverged)
    assert 0 < len(diverged) < 8
    assert {trial.state for trial in diverged} == {TrialState.PRUNED}, "which TPE learns from; it forgets failures"
    assert outcome.values["learning_rate"] < 1e-3


def test_a_trial_that_fails_counts_and_the_search_goes_on(plan, storage) -> None:
    failures = iter([True, False, True, False])
    (outcome,) = search(plan(methods=("lora",)), storage, FakeRuns(raising(BROKEN, lambda _: next(failures))))
    assert outcome.counts == {"complete": 2, "stopped early": 0, "failed": 2}
    assert outcome.trials[0].user_attrs["error"] == "OSError: broken on purpose"


def test_if_all_trials_of_a_method_fail_that_is_said(plan, storage) -> None:
    broken = FakeRuns(raising(BROKEN, lambda config: config.method == "glora"))
    with pytest.raises(SearchFailedError, match="0 of 2 trials .*glora on rte ") as caught:
        search(plan(trials=2), storage, broken)
    assert re.search("OSError: broken on purpose.*same command", str(caught.value))
    assert "of lora" not in str(caught.value)
    runs = FakeRuns()
    search(plan(trials=2), storage, runs)
    assert [config.method for config in runs.made] == ["glora"] * 2, "the same command tries what failed again"


def test_what_fails_every_time_is_not_tried_to_the_end(plan, storage) -> None:
    runs = FakeRuns(raising(BROKEN))
    with pytest.raises(SearchFailedError, match="first 3 trials .*lora on rte .*OSError: broken"):
        search(plan(methods=("lora",), trials=6), storage, runs)
    assert len(runs.made) == 3
    (outcome,) = search(plan(methods=("lora",), trials=6), storage, FakeRuns(lambda _config: 0.5))
    assert outcome.counts == {"complete": 6, "stopped early": 0, "failed": 0}


def test_settings_that_cannot_be_trained_together_cost_a_trial_and_no_training(plan, storage) -> None:
    runs = FakeRuns()
    ranges = {"warmup_steps": "2-14", "epochs": "1,3"}  # 5 steps an epoch: 14 of 15 fit, but not in one epoch
    (outcome,) = search(plan(ranges=ranges, methods=("glora",), trials=12), storage, runs)
    assert len(outcome.trials) == 12
    assert 0 < len(runs.made) < 12
    assert all(config.allocation.warmup_steps < 5 * config.epochs for config in runs.made)
    assert outcome.counts["failed"] == 12 - len(runs.made)


def test_the_search_is_recorded_and_shown(plan, storage, tmp_path: Path, tiny_deberta: Path) -> None:
    planned = plan()
    outcomes = search(planned, storage)
    path = write_search_record(tmp_path, search_record(planned, outcomes))
    record = read_search_record(tmp_path)
    assert record == search_record(planned, outcomes)
    assert record is not None
    assert (record.trials, record.held_out, record.trial_seed, record.seeds) == (4, 0.2, 2, [0, 1])
    table = tuning_table(record, "rte", str(tiny_deberta))
    assert table is not None
    assert [row[0] for row in table.rows] == ["lora", "glora"]
    assert table.rows[1][1].startswith("learning_rate=0.00")
    assert [(str(row[3]), str(row[5])) for row in table.rows] == [("4", "0")] * 2
    assert re.search("154 .*seed 2 .*38 others", table.note)
    assert tuning_table(record, "sst2", str(tiny_deberta)) is None
    path.write_text('{"schema_version": 1, "name": 3}')
    with pytest.raises(RecordError, match=r"search\.json: .*Move it away"):
        read_search_record(tmp_path)
    assert read_search_record(tmp_path / "nowhere") is None


def test_a_terminal_of_80_columns_shows_the_best_settings_in_full(plan, storage: SharedStorage) -> None:
    planned = plan(trials=2)
    outcomes = run_trials(planned, storage, RunProgress(), make_run=FakeRuns(), look_after=LOOK)
    console = Terminal(file=io.StringIO(), width=80)
    console.print(describe_outcomes(outcomes))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for outcome in outcomes:
        for name, value in outcome.values.items():
            assert f"{name}={value:.4g}" in shown
    assert "…" not in shown


def test_choices_that_are_no_more_than_trials_are_each_tried_once(plan, storage) -> None:
    searched = plan(
        methods=("lora", "glora"), ranges={"learning_rate": "1e-4,1e-3,1e-2,2e-2", "beta": "0.8,0.9"}, trials=7
    )
    runs = FakeRuns()
    search(searched, storage, runs)
    rates = [config.learning_rate for config in runs.made if config.method == "lora"]
    assert sorted(rates) == [1e-4, 1e-3, 1e-2, 2e-2]  # 7 trials, but lora has only 4 combinations
    assert len([config for config in runs.made if config.method == "glora"]) == 7  # of 8 combinations: TPE's choice
    lora, glora = searched.studies
    assert ("4 combinations" in lora.sampler, glora.sampler[:3]) == (True, "TPE")
