"""Runs that processes share: what is claimed, what is never made twice, and what is refused."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from glora.experiments.config import RunConfig
from glora.experiments.number_format import short_name
from glora.experiments.plan import Plan, plan_comparison
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import read_records, write_record
from glora.experiments.search import storage as storage_module
from glora.experiments.search import study as study_module
from glora.experiments.search.sharing import Sharing, look, make_shared_runs, open_sharing
from glora.experiments.search.storage import SharedStorage, StorageError, sqlite_url
from glora.experiments.search.study import StudyMismatchError
from glora.experiments.training.progress import RunProgress
from unit.experiments.plan_case import BROKEN, FakeRuns, change_weights, made_record, raising
from unit.experiments.search.search_case import LOOK, quick_storage, together

METHODS = ("lora", "adalora", "glora")


@pytest.fixture
def plan(tiny_rte: dict[str, Any], tmp_path: Path) -> Callable[..., Plan]:
    def make(folder: str = "one", seeds: tuple[int, ...] = (0, 1), methods=METHODS, **settings: Any) -> Plan:
        return plan_comparison(tmp_path / folder, methods=methods, seeds=seeds, settings={**tiny_rte, **settings})

    return make


def share(storage: SharedStorage, *plans: Plan, runs: Any = None, claim: str = "seeds") -> tuple[RunRecord, ...]:
    sharing = Sharing(storage, "a comparison", claim)
    return make_shared_runs(sharing, plans, RunProgress(), make_run=runs or FakeRuns(), look_after=LOOK)


def counts(finished: int, being_made: int, failed: int, waiting: int) -> dict[str, int]:
    return {"finished": finished, "being made": being_made, "failed": failed, "waiting": waiting}


def texts(records: Any) -> list[str]:
    """Records as they are kept: a run's configuration in memory also knows where its data lie."""
    return [record.model_dump_json() for record in records]


def names(runs: FakeRuns) -> list[tuple[int, str]]:
    return [(config.seed, config.method) for config in runs.made]


def killed_in(method: str, folder: Path, plan: Plan) -> None:
    """A process that is killed in the run of a method."""

    def accuracy(config: RunConfig) -> float:
        if config.method == method:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.5

    def worker() -> None:
        share(quick_storage(folder, grace=1), plan, runs=FakeRuns(accuracy))

    assert together([worker]) == [-signal.SIGKILL]


def study_of(storage: SharedStorage) -> optuna.Study:
    """The study with seed 0."""
    (name,) = (name for name in optuna.get_all_study_names(storage) if name.endswith("seed 0"))
    return optuna.load_study(storage=storage, study_name=name)


@pytest.mark.parametrize("claim", ["seeds", "runs"])
def test_every_run_is_made_once_seed_by_seed(plan, storage, tmp_path: Path, claim: str) -> None:
    first, second = FakeRuns(), FakeRuns()
    records = share(storage, plan("one"), runs=first, claim=claim)
    assert names(first) == [(seed, method) for seed in (0, 1) for method in METHODS], (
        "all methods of a seed, side by side"
    )
    assert texts(share(storage, plan("two"), runs=second, claim=claim)) == texts(records)
    assert not second.made
    assert read_records(tmp_path / "two") == read_records(tmp_path / "one")


def test_models_and_data_sets_are_about_equally_far(plan, storage) -> None:
    runs = FakeRuns()
    share(storage, plan(methods=("lora",)), plan(methods=("lora",), task="sst2"), runs=runs)
    assert [(config.task, config.seed) for config in runs.made] == [("rte", 0), ("sst2", 0), ("rte", 1), ("sst2", 1)]


def test_after_ctrl_c_another_process_makes_only_the_rest_of_the_seed(plan, storage, tmp_path: Path) -> None:
    interrupted = FakeRuns(raising(KeyboardInterrupt(), lambda config: config.method == "glora"))
    other = FakeRuns()
    with pytest.raises(KeyboardInterrupt):
        share(storage, plan("one", seeds=(0,)), runs=interrupted)
    assert names(interrupted) == [(0, "lora"), (0, "adalora")]
    share(storage, plan("two", seeds=(0,)), runs=other)
    assert names(other) == [(0, "glora")]
    assert len(read_records(tmp_path / "two")) == 3
    assert len(read_records(tmp_path / "one")) == 2, "it is gone before the last run is made"
    share(storage, plan("one", seeds=(0,)))
    assert read_records(tmp_path / "one") == read_records(tmp_path / "two")


def test_what_others_finished_is_there_after_ctrl_c_too(plan, storage, tmp_path: Path) -> None:
    def interrupted(_config: RunConfig) -> float:
        share(quick_storage(tmp_path), plan("two", seeds=(1,)))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share(storage, plan("one"), runs=FakeRuns(interrupted))
    assert read_records(tmp_path / "one") == read_records(tmp_path / "two")
    assert len(read_records(tmp_path / "one")) == 3


def test_a_seed_that_gets_on_is_not_given_up_however_often_its_processes_are_killed(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "MAX_STARTS", 1)
    planned, last = plan(seeds=(0,)), FakeRuns()
    for method in ("adalora", "glora"):
        killed_in(method, tmp_path, planned)
    assert len(share(quick_storage(tmp_path, grace=1), planned, runs=last)) == 3
    assert names(last) == [(0, "glora")]


def test_a_run_that_kills_its_processes_is_given_up_and_said(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Said(RunProgress):
        lines: ClassVar[list[str]] = []

        def say(self, message: str) -> None:
            self.lines.append(message)

    monkeypatch.setattr(storage_module, "MAX_STARTS", 1)
    planned, last = plan(seeds=(0,)), FakeRuns()
    for _ in range(2):  # the first has at least made the runs before it
        killed_in("glora", tmp_path, planned)
    sharing = Sharing(quick_storage(tmp_path, grace=1), "a comparison")
    time.sleep(2.5)  # heartbeats are compared by whole seconds
    records = make_shared_runs(sharing, [planned], Said(), make_run=last, look_after=LOOK)
    assert (len(records), last.made) == (2, [])
    (line,) = Said.lines
    assert line.startswith("glora, seed 0 is given up")
    assert look(sharing, [planned]) == (counts(2, 0, 1, 0),)


def test_who_asks_for_more_seeds_shares_those_in_common(plan, storage, tmp_path: Path) -> None:
    first, more, fewer = FakeRuns(), FakeRuns(), FakeRuns()
    share(storage, plan("one", seeds=(0, 1)), runs=first)
    share(storage, plan("two", seeds=(1, 2)), runs=more)
    assert {seed for seed, _ in names(more)} == {2}
    share(storage, plan("three", seeds=(2,)), runs=fewer)
    assert not fewer.made
    assert {record.config.seed for record in read_records(tmp_path / "three")} == {2}, "what was asked for, no more"


def test_what_lies_finished_in_one_folder_is_made_by_nobody(plan, storage, tmp_path: Path) -> None:
    finished = made_record(plan("one").runs[0].config, 0.75)
    write_record(tmp_path / "one", finished)
    with pytest.raises(KeyboardInterrupt):
        share(storage, plan("one"), runs=FakeRuns(raising(KeyboardInterrupt())))
    other = FakeRuns()
    records = share(storage, plan("two"), runs=other)
    assert len(other.made) == 5
    assert texts([finished])[0] in texts(records)
    assert texts([finished])[0] in texts(read_records(tmp_path / "two"))


def test_a_failed_run_does_not_keep_its_seed_from_ending_and_is_tried_again(plan, storage, tmp_path: Path) -> None:
    accuracy = raising(BROKEN, lambda config: (config.seed, config.method) == (0, "adalora"))
    first, second, third = FakeRuns(accuracy), FakeRuns(accuracy), FakeRuns()
    records = share(storage, plan("one"), runs=first)
    assert len(first.made) == 6
    assert [record.status for record in records].count("failed") == 1
    assert look(Sharing(storage, "a comparison"), [plan("two")])[0] == counts(5, 0, 1, 0)
    assert [record.status for record in share(storage, plan("two"), runs=second)].count("failed") == 1
    assert names(second) == [(0, "adalora")]
    assert {record.status for record in share(storage, plan("two"), runs=third)} == {"finished"}
    assert {record.status for record in read_records(tmp_path / "two")} == {"finished"}
    share(storage, plan("one"))
    assert {record.status for record in read_records(tmp_path / "one")} == {"finished"}


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"learning_rate": 1e-3}, "learning_rate: it has 0.0002; now 0.001"),
        ({"methods": ("lora", "glora")}, "methods: it has lora, adalora, glora; now lora, glora"),
        ({"beta": 0.5}, "beta: it has 0.9; now lora 0.9, adalora 0.9, glora 0.5"),
        ({"train_limit": 64}, "data: it has"),
        ({"claim": "runs"}, "claim: .*seeds; now runs"),
        # a model in another folder has other keys: its runs would be made twice
        ({"model": "elsewhere"}, r"model: it has tiny-deberta\d~\w+; now tiny-deberta\d~"),
    ],
)
def test_other_runs_of_the_same_name_are_refused(
    plan, storage, tiny_deberta: Path, tmp_path: Path, change: dict[str, Any], difference: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / tiny_deberta.name
    copy.symlink_to(tiny_deberta)
    claim = change.get("claim", "seeds")
    settings = {name: value for name, value in change.items() if name != "claim"}
    share(storage, plan("one"))
    other = plan("two", **({"model": str(copy)} if "model" in change else settings))
    with pytest.raises(StudyMismatchError, match=difference):
        share(storage, other, claim=claim)
    with pytest.raises(StudyMismatchError, match="another --study"):
        look(Sharing(storage, "a comparison", claim), [other])


def test_runs_of_another_model_in_the_same_folder_are_refused(
    plan, storage, tiny_deberta: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_deberta, tmp_path / "model")
    share(storage, plan("one", model=str(model)))
    change_weights(model)
    with pytest.raises(StudyMismatchError, match=r"weights: it has sha256:\w+; now sha256:\w+"):
        share(storage, plan("two", model=str(model)))


def test_data_and_models_whose_paths_end_alike_are_told_apart(
    plan, storage, tiny_deberta: Path, tmp_path: Path
) -> None:
    models = [str(shutil.copytree(tiny_deberta, tmp_path / name / "final")) for name in "ab"]
    share(storage, *(plan("one", methods=("lora",), seeds=(0,), model=model) for model in models))
    found = sorted(name for name in optuna.get_all_study_names(storage) if name.endswith("seed 0"))
    assert found == [f"a comparison / rte / {name}/final / runs / seed 0" for name in "ab"]


def test_a_look_says_how_far_the_runs_are_and_changes_nothing(plan, storage) -> None:
    sharing, looks = Sharing(storage, "a comparison"), []

    def accuracy(_config: RunConfig) -> float:
        looks.append(look(sharing, [plan("two")])[0])
        return 0.5

    assert look(sharing, [plan("two")]) == (counts(0, 0, 0, 6),)
    share(storage, plan("one"), runs=FakeRuns(accuracy))
    assert looks == [counts(done, 1, 0, 5 - done) for done in range(6)]
    assert look(sharing, [plan("two")]) == (counts(6, 0, 0, 0),)


def test_large_records_and_those_of_diverged_runs_come_back_as_they_were(plan, storage, tmp_path: Path) -> None:
    def make(config: RunConfig, *_: object, **_given: Any) -> RunRecord:
        ranks = {os.urandom(40).hex(): i for i in range(2000)}
        return made_record(config, float("nan"), ranks=ranks)

    share(storage, plan("one", seeds=(0,)), runs=make)
    share(storage, plan("two", seeds=(0,)))
    one, two = ([path.read_text() for path in sorted((tmp_path / name / "runs").iterdir())] for name in ("one", "two"))
    assert one == two
    assert len(one[0]) > 150_000


def test_of_two_finished_records_the_first_counts_for_every_worker(plan, storage, tmp_path: Path) -> None:
    """A worker that was suspended too long comes back after another one has made its run."""

    def suspended(_config: RunConfig) -> float:
        (trial,) = study_of(storage).get_trials()
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        share(quick_storage(tmp_path), plan("two", seeds=(0,), methods=("lora",)), runs=FakeRuns(lambda _: 0.25))
        return 0.75

    (record,) = share(storage, plan("one", seeds=(0,), methods=("lora",)), runs=FakeRuns(suspended))
    assert record.final == {"accuracy": 0.25}
    assert read_records(tmp_path / "one") == read_records(tmp_path / "two")
    assert len(read_records(tmp_path / "one")) == 1


@pytest.mark.parametrize("case", ["another key", "a path", "cut off", "not a record", "no text"])
def test_a_record_that_cannot_be_trusted_is_ignored_and_its_run_is_made(
    plan, storage, case: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "FILLING_SECONDS", 0)
    planned = plan(seeds=(0,), methods=("lora", "glora"))
    lora, glora = (run.config for run in planned.runs)
    record = made_record(lora, 0.99)
    if case in ("another key", "a path"):
        record = record.model_copy(update={"key": glora.key if case == "another key" else "../../x"})
    text = record.model_dump_json()
    part = {"cut off": text[:100], "not a record": "{}", "no text": 3}.get(case, text)
    name = f"a comparison / rte / {short_name(lora.model)} / runs / seed 0"
    study = optuna.create_study(storage=storage, study_name=name)
    study.add_trial(create_trial(value=0.99, user_attrs={"part 0": part}))
    runs = FakeRuns(lambda _: 0.5)
    records = share(storage, planned, runs=runs)
    assert [record.final["accuracy"] for record in records] == [0.5, 0.5]
    assert len(runs.made) == 2
    assert "is ignored" in caplog.text
    assert not list(planned.output.parent.rglob("x.json"))
    assert not (planned.output.parents[1] / "x.json").exists()


def test_an_item_that_nobody_here_has_is_let_go(plan, storage) -> None:
    with pytest.raises(KeyboardInterrupt):
        share(storage, plan(seeds=(0,)), runs=FakeRuns(raising(KeyboardInterrupt())))
    study_of(storage).enqueue_trial({}, {"item": "../../x"})
    assert len(share(storage, plan(seeds=(0,)))) == 3


def test_the_name_is_the_folders_and_the_options_go_together(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    sharing = open_sharing(url, None, None, tmp_path / "results" / "rte")
    assert (sharing.name, sharing.claim) == ("rte", "seeds")
    assert open_sharing(url, "ours", "runs", tmp_path).name == "ours"
    with pytest.raises(StorageError, match="study='ours' .*shared runs; .*--storage URL"):
        open_sharing(None, "ours", None, tmp_path)
