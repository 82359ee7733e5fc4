"""The database of shared work, through Optuna: SQLite for the processes of one machine, a server for many machines."""

from __future__ import annotations

import contextlib
import random
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, SQLAlchemyError

from glora.messages import get_logger

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
"""A worker counts as dead after six missing heartbeats: training may delay one."""

CONNECT_SECONDS, LOCK_SECONDS = 10, 60
"""Longest waits for a server, and for SQLite's lock, which is held for milliseconds."""

MAX_CONNECTIONS = 8
"""Attempts to connect: of workers that start together and create the tables, all but one fail at first."""

DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "pymysql"}
"""Module -> what pip installs."""

EXAMPLES = (
    "sqlite:///search.db, postgresql://user:password@host/database or mysql+pymysql://user:password@host/database"
)


class StorageError(ValueError):
    """A database that cannot be used; the message names it without its password."""


class SharedStorage(RDBStorage):
    """Optuna's storage, with a write lock in SQLite and a heartbeat from before a trial runs.

    Args:
        url: as SQLAlchemy writes it.
        heartbeat: seconds between two heartbeats of a running trial.
        grace: seconds without a heartbeat after which its worker counts as dead.
    """

    def __init__(self, url: str, *, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> None:
        parsed = sqlalchemy.make_url(url)
        self.shown_url = parsed.render_as_string(hide_password=True)
        driver, arguments = parsed.get_dialect().driver, {}
        if driver == "pysqlite":
            arguments = {"timeout": LOCK_SECONDS}
        elif driver in map(str.lower, DRIVERS) and "connect_timeout" not in parsed.query:
            arguments = {"connect_timeout": CONNECT_SECONDS}
        with without_warnings():
            super().__init__(
                url.replace("{", "{{").replace("}", "}}"),  # Optuna fills in a template
                engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                heartbeat_interval=heartbeat,
                grace_period=grace,
            )
        if (
            driver == "pysqlite"
        ):  # it has no row locks: every transaction takes the write lock first, as in SQLAlchemy's manual
            self.engine.dispose()
            sqlalchemy.event.listen(self.engine, "connect", lambda made, _: setattr(made, "isolation_level", None))
            sqlalchemy.event.listen(self.engine, "begin", lambda made: made.exec_driver_sql("BEGIN IMMEDIATE"))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; Optuna never finds a running trial dead that has had no heartbeat."""
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat, or warn if the database is away: the next one may arrive."""
        try:
            super().record_heartbeat(trial_id)
        except (StorageInternalError, SQLAlchemyError) as error:
            get_logger().warning("no heartbeat reached %s: %s", self.shown_url, _reason(error, self.url))


def open_storage(url: str, *, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> SharedStorage:
    """Connect to a database, and create Optuna's tables if they are missing; arguments as for `SharedStorage`.

    Raises:
        StorageError: no such kind of database, no driver, unreachable within CONNECT_SECONDS, or not writable.
    """
    shown = check_storage(url)
    for attempt in range(1, MAX_CONNECTIONS + 1):
        try:
            return SharedStorage(url, heartbeat=heartbeat, grace=grace)
        except RuntimeError as error:  # tables of another version of Optuna
            raise StorageError(f"storage={shown}: {error}") from error
        except (StorageInternalError, SQLAlchemyError, AssertionError) as error:
            reason = _reason(error, url)
            creating_together = not isinstance(error, OperationalError) or re.search("exist|locked", reason)
            if attempt == MAX_CONNECTIONS or not creating_together:
                remedy = "name a writable file" if "sqlite" in shown else "check server, port, user, password, database"
                raise StorageError(f"storage={shown}: {reason}; {remedy}") from None
        time.sleep(random.random() * 0.2 * attempt)
    raise AssertionError("unreachable")


def check_storage(url: str) -> str:
    """Check a database's URL and driver without connecting; return the URL without its password.

    Raises:
        StorageError: it cannot be used.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except ArgumentError:
        raise StorageError(f"the storage is not a database URL; write {EXAMPLES}") from None
    shown = parsed.render_as_string(hide_password=True)
    try:
        parsed.get_dialect().import_dbapi()
    except NoSuchModuleError:
        raise StorageError(f"storage={shown}: unknown database {parsed.drivername!r}; write {EXAMPLES}") from None
    except ImportError as error:
        package = DRIVERS.get(error.name or "", error.name)
        raise StorageError(f"storage={shown}: driver {error.name} not installed: pip install '{package}'") from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StorageError(f"storage={shown} is in memory and would be lost; name a file: sqlite:///search.db")
    return shown


def sqlite_url(folder: Path) -> str:
    """Return the URL of the database in an output folder, for searches without a storage."""
    return f"sqlite:///{folder / 'search.db'}"


@contextlib.contextmanager
def storage_errors(storage: SharedStorage) -> Iterator[None]:
    """Turn errors of the database during the work into one `StorageError`."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StorageError(
            f"storage={storage.shown_url} failed: {_reason(error, storage.url)}. Finished work is kept; once the database is "
            "back, the same command continues"
        ) from error


def _reason(error: BaseException, url: str) -> str:
    """Return the driver's message on one line, without the password; SQLAlchemy adds the statement and Optuna a guess."""
    while not getattr(error, "orig", None) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).split("\n")
    text = " ".join(line.strip() for line in lines[:3]).strip() or type(error).__name__
    password = sqlalchemy.make_url(url).password
    return text.replace(str(password), "***") if password else text


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Optuna: its heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        yield
