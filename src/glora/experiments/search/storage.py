"""The database of shared work, through Optuna: SQLite for the processes of one machine, a server for many machines."""

from __future__ import annotations

import contextlib
import random
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from glora.messages import get_logger

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
"""A worker counts as dead after six missing heartbeats: training may delay one."""

ERROR, STARTS = "error", "starts"
"""User attributes of a trial: what failed, and how often it was started since the last progress or interruption."""

MAX_STARTS = 3
"""Starts after which a trial whose worker dies is given up: it may be what kills them, such as by lack of memory."""

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


def show_url(url: str) -> str:
    """Return a database's URL without its password and options; nothing of it if it cannot be parsed for certain."""
    try:
        return _parse_url(url).set(query={}).render_as_string(hide_password=True)
    except StorageError:
        return "***"


def _parse_url(url: str) -> sqlalchemy.URL:
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):  # ValueError: the port is not a number
        raise StorageError(f"the storage is not a database URL; write {EXAMPLES}") from None
    # SQLAlchemy ends the password at the first @, and takes "host?password=p@ss" for a user.
    if not parsed.drivername.startswith("sqlite") and (url.count("@") > 1 or "?" in (parsed.username or "")):
        raise StorageError("the storage's URL has an unescaped @; in user, password and options write it as %40")
    return parsed


def _without_secrets(text: str, url: str) -> str:
    """Return a driver's message without the password and options of the URL; options of up to 3 characters are not secrets."""
    parsed = sqlalchemy.make_url(url)
    options = {value for values in parsed.normalized_query.values() for value in values if len(value) > 3}
    for secret in sorted({str(parsed.password or ""), *options} - {""}, key=len, reverse=True):
        for written in (secret, urllib.parse.quote_plus(secret), urllib.parse.quote(secret, safe="")):
            text = text.replace(written, "***")
    return text


class SharedStorage(RDBStorage):
    """A storage with a write lock in SQLite, a heartbeat from before a trial runs, and trials that outlive their workers.

    Args:
        url: as SQLAlchemy writes it.
        heartbeat: seconds between two heartbeats of a running trial.
        grace: seconds without a heartbeat after which its worker counts as dead.
    """

    def __init__(self, url: str, *, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> None:
        parsed = sqlalchemy.make_url(url)
        driver, arguments = parsed.get_dialect().driver, {}
        if driver == "pysqlite":
            arguments = {"timeout": LOCK_SECONDS}
        elif driver in map(str.lower, DRIVERS) and "connect_timeout" not in parsed.query:
            arguments = {"connect_timeout": CONNECT_SECONDS}
        super().__init__(
            url.replace("{", "{{").replace("}", "}}"),  # Optuna fills in a template
            engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
            heartbeat_interval=heartbeat,
            grace_period=grace,
        )
        if driver == "pysqlite":
            # it has no row locks: every transaction takes the write lock first, as in SQLAlchemy's manual
            self.engine.dispose()
            sqlalchemy.event.listen(self.engine, "connect", lambda made, _: setattr(made, "isolation_level", None))
            sqlalchemy.event.listen(self.engine, "begin", lambda made: made.exec_driver_sql("BEGIN IMMEDIATE"))

    @property
    def shown_url(self) -> str:
        """The URL as `show_url` shows it."""
        return show_url(self.url)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state; one that failed by no error of its own waits again, unless it was started MAX_STARTS times.

        Optuna fails the trial of a worker that was killed or interrupted; it never finds a running trial dead that has had no
        heartbeat.
        """
        if state == TrialState.RUNNING:
            super().record_heartbeat(trial_id)
        if state == TrialState.FAIL:
            attributes = self.get_trial(trial_id).user_attrs
            if ERROR not in attributes and attributes.get(STARTS, 0) < MAX_STARTS:
                state = TrialState.WAITING
        return super().set_trial_state_values(trial_id, state, values)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat, or warn if the database is away: the next one may arrive."""
        try:
            with self.errors_reported():
                super().record_heartbeat(trial_id)
        except StorageError as error:
            get_logger().warning("no heartbeat is recorded: %s", error)

    @contextlib.contextmanager
    def errors_reported(self) -> Iterator[None]:
        """Raise what Optuna and SQLAlchemy raise without a database as a `StorageError`; the next call connects again.

        Optuna's methods also raise `UnboundLocalError` then, and SQLAlchemy's session refuses all later work as an "invalid
        transaction".
        """
        try:
            yield
        except (SQLAlchemyError, StorageInternalError, UnboundLocalError) as error:
            with contextlib.suppress(Exception):
                self.remove_session()
            self.scoped_session.registry.clear()
            self.engine.dispose()
            raise StorageError(
                f"storage={self.shown_url} failed: {_reason(error, self.url).rstrip('.')}. Finished work is kept; once the "
                "database is back, the same command continues"
            ) from error


def open_storage(url: str, *, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> SharedStorage:
    """Connect to a database, and create Optuna's tables if they are missing; arguments as for `SharedStorage`.

    Raises:
        StorageError: no such kind of database, no driver, unreachable within CONNECT_SECONDS, or not writable.
    """
    shown = check_storage(url)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress shows what becomes of trials
    warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats are
    warnings.filterwarnings("ignore", "The reported value is ignored")  # a trial made again reports the same values
    for attempt in range(1, MAX_CONNECTIONS + 1):
        try:
            return SharedStorage(url, heartbeat=heartbeat, grace=grace)
        except RuntimeError as error:  # tables of another version of Optuna
            raise StorageError(f"storage={shown}: {error}") from error
        except (StorageInternalError, SQLAlchemyError, AssertionError) as error:
            reason = _reason(error, url)
            connected = getattr(error, "statement", "") is not None  # SQLAlchemy has none where it cannot connect
            if attempt == MAX_CONNECTIONS or not connected:
                remedy = "name a writable file" if "sqlite" in shown else "check server, port, user, password, database"
                raise StorageError(f"storage={shown}: {reason}; {remedy}") from None
        time.sleep(random.random() * 0.2 * attempt)
    raise AssertionError("unreachable")


def check_storage(url: str) -> str:
    """Check a database's URL and driver without connecting; return the URL as `show_url` shows it.

    Raises:
        StorageError: it cannot be used.
    """
    parsed, shown = _parse_url(url), show_url(url)
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
    return sqlalchemy.URL.create("sqlite", database=str(folder / "search.db")).render_as_string()


def _reason(error: BaseException, url: str) -> str:
    """Return the driver's message on one line, without secrets; SQLAlchemy adds the statement and Optuna a guess."""
    while not getattr(error, "orig", None) and (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    lines = str(getattr(error, "orig", None) or error).split("\n")
    text = " ".join(line.strip() for line in lines[:3]).strip() or type(error).__name__
    return _without_secrets(text, url)
