"""The database that a search lives in: SQLite for the processes of one machine, a server for any number of machines.

Optuna's `RDBStorage` keeps studies and trials. `SharedStorage` is that storage with three promises more, which a shared
search needs and which hold at whatever moment a process is killed:

* No trial is made beyond those that have been asked for (`shared_trials`). Optuna's `ask` makes a new one when none is
  waiting, so that N processes with `n_trials=n` make N·n of them, and `MaxTrialsCallback` up to N - 1 too many.
* One process runs a trial. Optuna takes a waiting trial by reading its state and then writing it, under a row lock that
  SQLite does not have: two processes can read "waiting" before either writes. Here every transaction of SQLite takes
  the write lock when it begins, as SQLAlchemy's manual describes.
* A trial that runs has a heartbeat from before it runs. Optuna's first heartbeat comes after the trial is taken, and a trial
  without any never counts as abandoned: the trial of a process killed in between would run for ever.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from glora.messages import get_logger

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Connection

DATABASE_FILE = "search.db"
"""SQLite's file in the output folder, where no storage is named."""

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60
"""A trial without a heartbeat for so long is given to another process: six heartbeats, since training may hold one up."""

CONNECT_SECONDS = 10
LOCK_SECONDS = 60
"""How long a process waits for SQLite's lock, which is held for milliseconds."""

ATTEMPTS = 8
"""Processes that begin together make the tables together, and all but one of them fail at first."""

DRIVERS = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
}
"""Module -> what pip installs."""

EXAMPLES = (
    "sqlite:///search.db, postgresql://user:password@host/database or mysql+pymysql://user:password@host/database"
)


class StorageError(ValueError):
    """A storage that cannot be used; the message names it without its password."""


class NoTrialWaitingError(Exception):
    """All trials that were asked for are finished, or run elsewhere."""


class SharedStorage(RDBStorage):
    """Optuna's storage, with what the module describes.

    Args:
        url: as SQLAlchemy writes it.
        heartbeat: seconds between two signs of life of a running trial.
        grace: seconds without one after which its process is gone.
    """

    def __init__(
        self,
        url: str,
        *,
        heartbeat: int = HEARTBEAT_SECONDS,
        grace: int = GRACE_SECONDS,
    ) -> None:
        parsed = sqlalchemy.make_url(url)
        self.shown_url = parsed.render_as_string(hide_password=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna fills in a template
                engine_kwargs={"connect_args": _connect_arguments(parsed), "pool_pre_ping": True},
                heartbeat_interval=heartbeat,
                grace_period=grace,
            )
        if parsed.get_backend_name() == "sqlite":
            self.engine.dispose()
            sqlalchemy.event.listen(self.engine, "connect", _leave_transactions_to_us)
            sqlalchemy.event.listen(self.engine, "begin", _begin_immediate)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is None:
            raise NoTrialWaitingError
        return super()._create_new_trial(study_id, template_trial)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; one that is to run has a heartbeat first."""
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def record_heartbeat(self, trial_id: int) -> None:
        """Give a sign of life. A database that is away for a moment must not end the trial: the next one may arrive."""
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            get_logger().warning("no heartbeat reached %s: %s", self.shown_url, reason(error))


def open_storage(
    url: str,
    *,
    heartbeat: int = HEARTBEAT_SECONDS,
    grace: int = GRACE_SECONDS,
) -> SharedStorage:
    """Connect to a database and make Optuna's tables in it if they are missing.

    Args:
        url: as SQLAlchemy writes it: sqlite:///search.db, postgresql://user:password@host/database.
        heartbeat: as for `SharedStorage`.
        grace: as for `SharedStorage`.

    Raises:
        StorageError: no such kind of database, its driver is not installed, it cannot be reached within
            CONNECT_SECONDS, or its file cannot be written.
    """
    shown = check_storage(url)
    for attempt in itertools.count(1):
        storage = _connect(url, shown, last=attempt == ATTEMPTS, heartbeat=heartbeat, grace=grace)
        if storage is not None:
            return storage
        time.sleep(random.random() * 0.2 * attempt)
    raise AssertionError("unreachable")


def sqlite_url(folder: Path) -> str:
    """The database in an output folder; relative to the working folder if the folder is."""
    return f"sqlite:///{folder / DATABASE_FILE}"


@contextlib.contextmanager
def storage_errors(storage: SharedStorage) -> Iterator[None]:
    """What the database reports in the midst of the work, as one message.

    Raises:
        StorageError: it cannot be reached any more, or refuses to write.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StorageError(
            f"storage={storage.shown_url} failed: {_without_password(reason(error), storage.url)}. What is finished is "
            "kept in it; once it is back, the same command goes on, and the trial that was under way is made again"
        ) from error


def reason(error: BaseException) -> str:
    """What the driver says, on one line; SQLAlchemy adds the statement and Optuna a guess."""
    while not getattr(error, "orig", None) and error.__cause__ is not None:
        error = error.__cause__
    error = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def _connect(url: str, shown: str, *, last: bool, heartbeat: int, grace: int) -> SharedStorage | None:
    """The storage; None if this may have failed only because other processes make the tables at this moment."""
    try:
        return SharedStorage(url, heartbeat=heartbeat, grace=grace)
    except RuntimeError as error:  # tables of another version of Optuna
        raise StorageError(f"storage={shown}: {error}") from error
    except (StorageInternalError, SQLAlchemyError, AssertionError) as error:
        if last or _is_down(error):
            raise StorageError(f"storage={shown}: {_without_password(reason(error), url)}{_remedy(url)}") from None
        return None


def check_storage(url: str) -> str:
    """The URL without its password, if there is such a kind of database, its driver, and its file could be written.

    Raises:
        StorageError: if not; nothing is connected to.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError:
        raise StorageError(f"the storage is no database URL; write {EXAMPLES}") from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() in ("redis", "rediss"):
        raise StorageError(
            f"storage={shown}: Optuna keeps no heartbeats in Redis, so the trial of a killed process would run for ever; "
            f"write {EXAMPLES}"
        )
    try:
        parsed.get_dialect().import_dbapi()
    except NoSuchModuleError:
        raise StorageError(f"storage={shown}: there is no database {parsed.drivername!r}; write {EXAMPLES}") from None
    except ImportError as error:
        package = DRIVERS.get(error.name or "", error.name)
        raise StorageError(
            f"storage={shown}: the driver {error.name} is not installed: pip install '{package}'"
        ) from None
    if parsed.get_backend_name() == "sqlite":
        _check_file(parsed, shown)
    return shown


def _check_file(parsed: URL, shown: str) -> None:
    if parsed.database in (None, "", ":memory:"):
        raise StorageError(f"storage={shown} is in memory and would be lost; name a file: sqlite:///search.db")
    file = Path(parsed.database or "")
    if not file.parent.is_dir():
        raise StorageError(f"storage={shown}: there is no folder {str(file.parent)!r}; make it, or name another file")
    for path, what in ((file.parent, "folder"), (file, "file")):  # SQLite writes a journal beside the file
        if path.exists() and not os.access(path, os.W_OK):
            raise StorageError(f"storage={shown}: no permission to write the {what} {str(path)!r}; name another file")


def _connect_arguments(parsed: URL) -> dict[str, Any]:
    driver = parsed.get_dialect().driver
    if driver == "pysqlite":
        return {"timeout": LOCK_SECONDS}
    given = "connect_timeout" in parsed.query
    return (
        {}
        if given or driver not in ("psycopg", "psycopg2", "mysqldb", "pymysql")
        else {"connect_timeout": CONNECT_SECONDS}
    )


def _leave_transactions_to_us(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's sqlite3 would begin one only before the first write


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _is_down(error: BaseException) -> bool:
    """Whether the database is not there; what else goes wrong at the start is processes making tables together."""
    text = reason(error).lower()
    return isinstance(error, sqlalchemy.exc.OperationalError) and not (
        ("exist" in text and "already" in text) or "locked" in text
    )


def _without_password(text: str, url: str) -> str:
    password = sqlalchemy.make_url(url).password
    return text.replace(str(password), "***") if password else text


def _remedy(url: str) -> str:
    if sqlalchemy.make_url(url).get_backend_name() == "sqlite":
        return ". Name a file in a folder that can be written"
    return ". Is the server running, and are host, port, user, password and database right?"
