"""Any number of processes do the trials of a study, each once, whoever is killed, interrupted or suspended."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from glora.experiments.search import shared_trials
from glora.experiments.search.shared_trials import (
    SLOT,
    SURPLUS,
    Job,
    StudyMismatchError,
    TrialFailedError,
    open_study,
    read_slots,
    retry_failed,
    slot_of,
    work,
)
from glora.experiments.search.storage import SharedStorage, open_storage
from unit.experiments.search.search_case import GRACE, LOOK, Worker, quick_storage, read_trials, together

SLOTS = ["a", "b", "c"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


@pytest.fixture
def storage(url: str, tmp_path: Path) -> SharedStorage:
    return quick_storage(tmp_path)


def study_of(storage: SharedStorage, slots: list[str] = SLOTS, **terms: object) -> optuna.Study:
    return open_study(storage, "shared", slots, terms)


def states(study: optuna.Study) -> dict[str, str]:
    return {name: slot.state for name, slot in read_slots(study).items()}


def finish(study: optuna.Study, do=lambda trial: 1.0) -> list[str]:
    """Work until nothing is left; the slots that were done."""
    done: list[str] = []

    def doing(trial: optuna.Trial) -> float:
        done.append(slot_of(trial))
        return do(trial)

    work([Job(study, doing)], look_after=LOOK)
    return done


# Several processes


def test_processes_that_begin_together_make_exactly_the_number_of_trials(url: str, tmp_path: Path) -> None:
    worker = Worker(url, tmp_path / "done", slots=24, seconds=0.01, grace=60)
    assert together([worker] * 3) == [0] * 3
    assert sorted(worker.done) == sorted(f"trial {i}" for i in range(24)), "each once"
    trials = read_trials(url)
    assert len(trials) == 24, "and the database holds no others"
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({line.split(",")[1] for line in (tmp_path / "done").read_text().splitlines()}) > 1, (
        "by several processes"
    )


def test_two_processes_never_take_one_trial(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read that it waits; in SQLite, where rows cannot be locked, both would then write that it runs."""
    study_of(open_storage(url), ["only"])
    first, second = open_storage(url), open_storage(url)
    trial_id = first.get_all_trials(1)[0]._trial_id
    checked, taken = SharedStorage.check_trial_is_updatable, []

    def look_and_let_the_other_in(self: SharedStorage, *arguments: object) -> None:
        checked(self, *arguments)  # type: ignore[arg-type]
        if self is first:  # between reading the state and writing it
            with pytest.raises(optuna.exceptions.StorageInternalError, match="exception"):
                taken.append(second.set_trial_state_values(trial_id, TrialState.RUNNING))

    monkeypatch.setattr("glora.experiments.search.storage.LOCK_SECONDS", 0.1)
    second = open_storage(url)
    monkeypatch.setattr(SharedStorage, "check_trial_is_updatable", look_and_let_the_other_in)
    assert first.set_trial_state_values(trial_id, TrialState.RUNNING)
    assert not taken


def test_the_trial_of_a_killed_process_is_made_again_with_the_same_settings(url: str, tmp_path: Path) -> None:
    worker = Worker(url, tmp_path / "done", slots=6, die_in=("trial 2", "trial 4"))
    assert sorted(together([worker] * 3)) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    assert sorted(worker.done) == sorted(f"trial {i}" for i in range(6))
    trials = read_trials(url)
    assert len(trials) == 8
    for slot in ("trial 2", "trial 4"):
        dead, made = (trial for trial in trials if slot_of(trial) == slot)
        assert (dead.state, made.state) == (TrialState.FAIL, TrialState.COMPLETE)
        assert dead.params == made.params != {}


def test_a_lone_process_that_was_killed_is_resumed_by_another(url: str, tmp_path: Path) -> None:
    worker = Worker(url, tmp_path / "done", slots=4, die_in=("trial 1",))
    assert together([worker]) == [-signal.SIGKILL]
    assert worker.done == ["trial 0"]
    assert together([worker]) == [0]
    assert sorted(worker.done) == [f"trial {i}" for i in range(4)], "what was finished is not made again"


def test_ctrl_c_gives_the_trial_back_at_once(storage: SharedStorage) -> None:
    study = study_of(storage)
    settings = []

    def interrupted(trial: optuna.Trial) -> float:
        settings.append(trial.suggest_float("x", 0, 1))
        if len(settings) == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        work([Job(study, interrupted)], look_after=LOOK)
    assert states(study) == {"a": "done", "b": "open", "c": "open"}
    began = time.monotonic()
    finish(study, interrupted)
    assert time.monotonic() - began < GRACE, "without waiting for a heartbeat to stop"
    assert states(study) == dict.fromkeys(SLOTS, "done")
    assert settings[1] in settings[2:], "with the same settings"


# Whatever moment a process is killed in


@pytest.mark.timeout(60)  # it would wait for ever
def test_killed_between_taking_a_trial_and_its_first_heartbeat(storage: SharedStorage, url: str) -> None:
    """Optuna's heartbeat begins after that, and a trial without any never counts as abandoned."""
    study = study_of(storage)
    assert optuna.load_study(storage=open_storage(url), study_name="shared")._pop_waiting_trial_id() is not None
    assert sorted(finish(study)) == SLOTS


def test_killed_while_filling_a_study(storage: SharedStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_trials, "PATIENCE_SECONDS", 0.2)
    study = optuna.create_study(storage=storage, study_name="shared")  # no terms yet, and one trial of three
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={SLOT: "a"}))
    assert sorted(finish(study_of(storage, n=1))) == SLOTS
    with pytest.raises(StudyMismatchError):
        study_of(storage, n=2)


def test_killed_between_declaring_a_trial_dead_and_replacing_it(
    storage: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_trials, "PATIENCE_SECONDS", 0.2)
    study = study_of(storage)
    study.optimize(lambda _: 1.0, n_trials=1)
    (trial,) = (t for t in study.get_trials() if slot_of(t) == "b")
    storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    assert states(study) == {"a": "done", "b": "lost", "c": "open"}
    assert sorted(finish(study)) == ["b", "c"]


def test_of_two_trials_of_a_slot_one_is_made(storage: SharedStorage) -> None:
    """Two processes that replace a lost trial at the same time, or fill a study together, add it twice."""
    study = study_of(storage, ["a"])
    for slot in ("a", "b", "b"):
        study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={SLOT: slot}))
    assert sorted(finish(study)) == ["a", "b"]
    assert finish(study) == []
    surplus = [trial.number for trial in study.get_trials() if SURPLUS in trial.user_attrs]
    assert surplus == [1, 3], "the later ones were let go"
    assert states(study) == {"a": "done", "b": "done"}


@pytest.mark.parametrize("reports", [True, False])
def test_a_process_that_was_thought_dead_goes_on_with_the_next_trial(
    storage: SharedStorage, url: str, reports: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended laptop: others have taken over its trial, and what it says of it counts no more."""
    monkeypatch.setattr(shared_trials, "PATIENCE_SECONDS", 0.2)
    study = study_of(storage)
    slept = []

    def asleep(trial: optuna.Trial) -> float:
        if not slept:
            slept.append(trial.number)
            open_storage(url).set_trial_state_values(trial._trial_id, TrialState.FAIL)
            if reports:
                trial.report(0.1, 1)
        return 1.0

    work([Job(study, asleep)], look_after=LOOK)
    assert states(study) == dict.fromkeys(SLOTS, "done")
    assert len(study.get_trials()) == 4


def test_a_trial_that_kills_every_process_is_given_up(url: str, tmp_path: Path) -> None:
    storage = open_storage(url)
    study = study_of(storage, ["a"])
    for deaths in range(1, shared_trials.MAX_DEATHS + 1):
        trial_id = study._pop_waiting_trial_id()
        assert trial_id is not None
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
        assert states(study) == {"a": "failed" if deaths == shared_trials.MAX_DEATHS else "lost"}
        if deaths < shared_trials.MAX_DEATHS:
            shared_trials._replace(study, study.get_trials()[-1])
    assert finish(study) == []


# Outcomes


def test_a_failed_trial_is_an_outcome_and_is_tried_again_only_when_asked(storage: SharedStorage) -> None:
    study = study_of(storage)

    def broken(trial: optuna.Trial) -> float:
        if slot_of(trial) == "b":
            raise TrialFailedError("broken on purpose")
        return 1.0

    assert finish(study, broken) == SLOTS
    assert states(study) == {"a": "done", "b": "failed", "c": "done"}
    assert read_slots(study)["b"].last.user_attrs["error"] == "broken on purpose"
    assert finish(study, broken) == []
    retry_failed(study)
    retry_failed(study)  # by another process at the same time
    assert finish(study) == ["b"]
    assert states(study) == dict.fromkeys(SLOTS, "done")


def test_a_fault_of_the_program_is_not_taken_for_an_outcome(storage: SharedStorage) -> None:
    def faulty(trial: optuna.Trial) -> float:
        raise ValueError("a fault")

    study = study_of(storage)
    with pytest.raises(ValueError, match="a fault"):
        finish(study, faulty)
    assert finish(study) == ["b", "c", "a"], "and the trial is not lost"


def test_studies_take_turns(storage: SharedStorage) -> None:
    done: list[str] = []

    def job(name: str) -> Job:
        def do(trial: optuna.Trial) -> float:
            done.append(f"{name} {slot_of(trial)}")
            return 1.0

        return Job(open_study(storage, name, SLOTS, {}), do)

    work([job("lora"), job("glora")], look_after=LOOK)
    assert done == ["lora a", "glora a", "lora b", "glora b", "lora c", "glora c"]


def test_another_study_of_the_same_name_is_refused_naming_what_differs(storage: SharedStorage) -> None:
    study_of(storage, trials=20, space={"beta": "0.8 to 0.99"}, data="1a2b")
    study_of(storage, trials=20, space={"beta": "0.8 to 0.99"}, data="1a2b")
    with pytest.raises(StudyMismatchError) as caught:
        study_of(storage, trials=30, space={"beta": "0.5 to 0.99"}, data="1a2b")
    assert caught.value.differences == (
        "trials: it has 20; now 30",
        "space: it has beta 0.8 to 0.99; now beta 0.5 to 0.99",
    )
    assert "name another --output" in str(caught.value)
