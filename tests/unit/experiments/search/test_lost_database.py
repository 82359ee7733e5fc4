"""A database that goes away: one message at every moment, and the next call connects again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from optuna import Trial
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from glora.experiments.search import study as study_module
from glora.experiments.search.storage import SharedStorage, StorageError
from glora.experiments.search.study import Job, open_study, work
from unit.experiments.search.search_case import quick_storage

ITEMS: dict[str, dict[str, Any]] = {"a": {}}


def work_on(storage: SharedStorage) -> None:
    def do(trial: Trial) -> float:
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 1)
        return float(trial.should_prune())

    with storage.errors_reported():
        work([Job(open_study(storage, "shared", ITEMS, {}), ITEMS, do)], waiting=lambda _: None, look_after=0)


def test_every_statement_may_be_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "FILLING_SECONDS", 0)
    messages = []
    for statement in range(0, 1000, 7):
        storage, left = quick_storage(tmp_path, heartbeat=600), iter(range(statement))

        def cut_off(connection: Any, *_: object, left: Any = left) -> None:
            if next(left, None) is None:
                connection.connection.dbapi_connection.close()  # rolling back fails too

        sqlalchemy.event.listen(storage.engine, "before_cursor_execute", cut_off)
        try:
            work_on(storage)
        except StorageError as error:
            messages.append(str(error))
        else:
            break
        finally:
            sqlalchemy.event.remove(storage.engine, "before_cursor_execute", cut_off)
        storage.get_all_studies()
        storage.engine.dispose()
        (tmp_path / "search.db").unlink()
    assert len(messages) > 10
    kept = "closed database. Finished work is kept; once the database is back"
    assert not [each for each in messages if kept not in each]


@pytest.mark.parametrize(
    "error", [UnboundLocalError("trial"), sqlalchemy.exc.PendingRollbackError("invalid transaction")]
)
def test_errors_inside_optuna_and_sqlalchemy_are_not_shown_raw(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    storage = quick_storage(tmp_path)
    with monkeypatch.context() as broken, pytest.raises(StorageError, match="the same command continues"):
        broken.setattr(
            storage, "scoped_session", type("Broken", (), {"__call__": fail, "registry": {}, "remove": fail})()
        )
        work_on(storage)
    work_on(storage)


def test_no_trial_runs_without_a_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would find out that its worker is dead."""

    def lost(*_: object) -> None:
        raise StorageInternalError("lost")

    storage = quick_storage(tmp_path)
    (trial,) = open_study(storage, "shared", ITEMS, {}).get_trials()
    monkeypatch.setattr(RDBStorage, "record_heartbeat", lost)
    with pytest.raises(StorageInternalError, match="lost"):
        storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
    assert storage.get_trial(trial._trial_id).state == TrialState.WAITING


def test_a_heartbeat_that_does_not_arrive_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = quick_storage(tmp_path)
    (tmp_path / "search.db").unlink()
    storage.engine.dispose()
    storage.record_heartbeat(1)
    assert "no heartbeat" in caplog.text
