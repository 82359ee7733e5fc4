"""Any number of workers make the items of a study, each at least once, and one trial of each counts."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from glora.experiments.records.interrupts import hold_interrupts
from glora.experiments.search import study as study_module
from glora.experiments.search.storage import MAX_STARTS, STARTS, SharedStorage, open_storage
from glora.experiments.search.study import (
    ITEM,
    Job,
    StudyMismatchError,
    TrialFailedError,
    confirm_progress,
    item_of,
    open_study,
    read_items,
    retry_failed,
    work,
)
from unit.experiments.search.search_case import GRACE, LOOK, Worker, read_trials, together

ITEMS: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {}}
DONE = dict.fromkeys(ITEMS, "COMPLETE")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


def study_of(storage: SharedStorage, items: dict[str, dict[str, Any]] = ITEMS, **config: object) -> optuna.Study:
    return open_study(storage, "shared", items, config)


def states(study: optuna.Study) -> dict[str, str]:
    return {name: trial.state.name for name, trial in sorted(read_items(study).items())}


def test_an_entry_that_is_not_known_yet_is_filled_in_by_who_knows_it(storage) -> None:
    """The hub's cache holds no model before the first trial."""
    study_of(storage, trials=3, weights=None)
    study_of(storage, trials=3, weights="commit:a")
    study_of(storage, trials=3, weights=None)
    with pytest.raises(StudyMismatchError, match="weights: it has commit:a; now commit:b"):
        study_of(storage, trials=3, weights="commit:b")
    with pytest.raises(StudyMismatchError, match="beta: .*None; now 1"):
        study_of(storage, trials=3, weights="commit:a", beta=1)


def finish(study: optuna.Study, do=lambda trial: 1.0, items: dict[str, dict[str, Any]] = ITEMS) -> list[str]:
    """Work until nothing is left; the items that were made."""
    done: list[str] = []

    def doing(trial: optuna.Trial) -> float:
        done.append(item_of(trial))
        return do(trial)

    work([Job(study, items, doing)], waiting=lambda _: None, look_after=LOOK)
    return done


# Several processes


def test_workers_that_start_together_make_exactly_the_number_of_trials(url: str, tmp_path: Path) -> None:
    worker = Worker(url, tmp_path / "done", items=24, seconds=0.01, grace=60)
    assert together([worker] * 3) == [0] * 3
    assert sorted(worker.done) == sorted(f"trial {i}" for i in range(24)), "each once"
    kept = [trial for trial in read_trials(url) if trial.state == TrialState.COMPLETE]
    assert len(kept) == 24
    workers = {line.split(",")[1] for line in (tmp_path / "done").read_text().splitlines()}
    assert len(workers) > 1


def test_two_workers_never_take_one_trial(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read that it waits; SQLite has no row locks, so both could then write that it runs."""
    study_of(open_storage(url), {"only": {}})
    first = open_storage(url)
    trial_id = first.get_all_trials(1)[0]._trial_id
    monkeypatch.setattr("glora.experiments.search.storage.LOCK_SECONDS", 0.1)
    second, check, taken = open_storage(url), SharedStorage.check_trial_is_updatable, []

    def let_the_other_in(self: SharedStorage, *arguments: object) -> None:
        check(self, *arguments)  # type: ignore[arg-type]
        if self is first:  # between reading the state and writing it
            with pytest.raises(StorageInternalError):
                taken.append(second.set_trial_state_values(trial_id, TrialState.RUNNING))

    monkeypatch.setattr(SharedStorage, "check_trial_is_updatable", let_the_other_in)
    assert first.set_trial_state_values(trial_id, TrialState.RUNNING)
    assert not taken


def test_the_trial_of_a_killed_worker_is_made_again_with_the_same_settings(url: str, tmp_path: Path) -> None:
    worker = Worker(url, tmp_path / "done", items=6, die_in=("trial 2", "trial 4"))
    assert sorted(together([worker] * 3)) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert sorted(worker.done) == sorted(f"trial {i}" for i in range(6))
    settings = {trial.user_attrs[ITEM]: str(trial.params["x"]) for trial in read_trials(url) if trial.params}
    tried = [line.split(",")[::2] for line in (tmp_path / "done").read_text().splitlines()]
    for item in worker.die_in:
        assert [item, settings[item]] in tried
        assert (tmp_path / f"died in {item}").read_text() == settings[item]


def test_ctrl_c_frees_the_trial_at_once(storage: SharedStorage) -> None:
    study, settings = study_of(storage), []

    def interrupted(trial: optuna.Trial) -> float:
        settings.append(trial.suggest_float("x", 0, 1))
        if len(settings) == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        finish(study, interrupted)
    assert states(study) == {"a": "COMPLETE", "b": "WAITING", "c": "WAITING"}
    began = time.monotonic()
    finish(study, interrupted)
    assert time.monotonic() - began < GRACE, "without waiting for missing heartbeats"
    assert states(study) == DONE
    assert settings[1] in settings[2:], "with the same settings"


def test_ctrl_c_while_a_measured_trial_is_written_waits_for_it(storage: SharedStorage) -> None:
    study, made = study_of(storage), []

    def measured(trial: optuna.Trial) -> float:
        made.append(item_of(trial))
        hold_interrupts()
        signal.raise_signal(signal.SIGINT)
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        finish(study, measured)
    assert states(study) == {"a": "COMPLETE", "b": "WAITING", "c": "WAITING"}
    assert made == ["a"]


# Every moment of a kill


@pytest.mark.timeout(60)  # it would wait for ever
def test_killed_between_taking_a_trial_and_its_first_heartbeat(storage: SharedStorage, url: str) -> None:
    study = study_of(storage)
    assert optuna.load_study(storage=open_storage(url), study_name="shared")._pop_waiting_trial_id() is not None
    assert sorted(finish(study)) == sorted(ITEMS)


def test_killed_while_filling_a_study(storage: SharedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "FILLING_SECONDS", 0.2)
    optuna.create_study(storage=storage, study_name="shared").enqueue_trial({}, {ITEM: "a"})
    assert sorted(finish(study_of(storage, n=1))) == sorted(ITEMS)
    with pytest.raises(StudyMismatchError):
        study_of(storage, n=2)


def test_one_of_two_trials_of_an_item_is_made(storage: SharedStorage) -> None:
    """Two workers that retry a failed trial at the same time, or fill a study together, add it twice."""
    study = study_of(storage)
    for item in ("a", "b"):
        study.enqueue_trial({}, {ITEM: item})
    assert sorted(finish(study)) == sorted(ITEMS)
    assert finish(study) == []
    assert [trial.number for trial in study.get_trials() if trial.state == TrialState.COMPLETE] == [0, 1, 2]
    assert states(study) == DONE


def test_a_trial_that_optuna_adds_to_an_empty_queue_is_let_go(
    storage: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has taken the last one since this worker saw it waiting."""
    study = study_of(storage, {"a": {}})
    monkeypatch.setattr(study, "_pop_waiting_trial_id", lambda: None)
    assert study_module._take_one(Job(study, {"a": {}}, lambda _: 1.0))
    monkeypatch.undo()
    assert finish(study, items={"a": {}}) == ["a"]
    assert states(study) == {"a": "COMPLETE"}


@pytest.mark.parametrize("reports", [True, False])
def test_a_worker_that_was_thought_dead_continues_with_the_next_trial(
    storage: SharedStorage, url: str, reports: bool
) -> None:
    """A suspended laptop: others have taken over its trial, and its result does not count."""
    study, slept = study_of(storage), []

    def asleep(trial: optuna.Trial) -> float:
        if not slept:
            slept.append(trial.number)
            open_storage(url).set_trial_state_values(trial._trial_id, TrialState.FAIL)
            if reports:
                trial.report(0.1, 1)
            return 0.5
        return 1.0

    finish(study, asleep)
    assert states(study) == DONE
    assert {trial.value for trial in study.get_trials()} == {1.0}


def test_a_worker_that_was_thought_dead_leaves_the_rest_of_an_item_to_another(storage: SharedStorage, url: str) -> None:
    study, made = study_of(storage, {"a": {}}), []

    def asleep(trial: optuna.Trial) -> float:
        for part in ("first", "second"):
            made.append(part)
            for state in (TrialState.FAIL, TrialState.RUNNING):  # another worker takes it over
                open_storage(url).set_trial_state_values(trial._trial_id, state)
            confirm_progress(trial)
        return 1.0

    assert study_module._take_one(Job(study, {"a"}, asleep))
    assert made == ["first"]
    assert states(study) == {"a": "RUNNING"}, "the other worker's trial is not ended"


def test_a_trial_that_kills_every_worker_is_given_up(url: str) -> None:
    storage = open_storage(url)
    for starts in range(1, MAX_STARTS + 1):
        study = study_of(storage, {"a": {}})
        trial = study.ask()
        trial.set_user_attr(STARTS, starts)
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        assert states(study) == {"a": "FAIL" if starts == MAX_STARTS else "WAITING"}
    assert finish(study, items={"a": {}}) == []


# Outcomes


def test_a_failed_trial_is_an_outcome_and_is_tried_again_only_when_asked(storage: SharedStorage) -> None:
    study = study_of(storage)

    def broken(trial: optuna.Trial) -> float:
        if item_of(trial) == "b":
            raise TrialFailedError("broken on purpose")
        return 1.0

    assert finish(study, broken) == list(ITEMS)
    assert states(study) == {"a": "COMPLETE", "b": "FAIL", "c": "COMPLETE"}
    assert read_items(study)["b"].user_attrs["error"] == "broken on purpose"
    assert finish(study, broken) == []
    retry_failed(study)
    retry_failed(study)  # by another worker at the same time
    assert finish(study) == ["b"]
    assert states(study) == DONE


def test_an_error_of_the_program_is_not_an_outcome(storage: SharedStorage) -> None:
    def invalid(trial: optuna.Trial) -> float:
        raise ValueError("an error")

    study = study_of(storage)
    with pytest.raises(ValueError, match="an error"):
        finish(study, invalid)
    assert finish(study) == ["a", "b", "c"], "and the trial is not lost"


def test_fixed_parameters_are_those_of_the_trial(storage: SharedStorage) -> None:
    items = {f"trial {i}": {"x": 0.25 * i} for i in range(4)}
    study = study_of(storage, items)
    tried: list[float] = []
    finish(study, lambda trial: tried.append(trial.suggest_float("x", 0, 1)) or 1.0, items)
    assert tried == [0.0, 0.25, 0.5, 0.75]


def test_another_study_of_the_same_name_is_refused_naming_what_differs(storage: SharedStorage) -> None:
    study_of(storage, trials=20, beta="0.8 to 0.99", data="1a2b")
    study_of(storage, trials=20, beta="0.8 to 0.99", data="1a2b")
    with pytest.raises(StudyMismatchError, match="trials: .*20; now 30\n.*beta: .*0.8 to 0.99; now 0.5") as e:
        study_of(storage, trials=30, beta="0.5 to 0.99", data="1a2b")
    assert "data" not in str(e.value)
    assert "another --output" in str(e.value)
