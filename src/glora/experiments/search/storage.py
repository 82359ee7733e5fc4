"""The database of shared work, through Optuna: SQLite for the processes of one machine, a server for many machines."""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import re
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import (
    DuplicatedStudyError,
    ExperimentalWarning,
    StorageInternalError,
    UpdateFinishedTrialError,
)
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from glora.messages import get_logger

HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
"""A worker counts as dead after six missing heartbeats: training may delay one."""

CONNECT_SECONDS, LOCK_SECONDS = 10, 60
"""Longest waits for a server, and for SQLite's lock, which is held for milliseconds."""

MAX_CONNECTIONS = 8
"""Attempts to connect: of workers that start together and create the tables, all but one fail at first."""

DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient", "pymysql": "pymysql"}
"""Module -> what pip installs."""

SHOWN_OPTIONS = frozenset({"charset", "connect_timeout", "mode", "sslmode", "timeout", "uri"})
"""Options in a URL's query whose values are shown; any other may hold a secret."""

EXAMPLES = (
    "sqlite:///search.db, postgresql://user:password@host/database or mysql+pymysql://user:password@host/database"
)


class StorageError(ValueError):
    """A database that cannot be used; the message names it without its password."""


def show_url(url: str) -> str:
    """Return a database's URL without its secrets: password and options; only the scheme if it cannot be parsed for certain."""
    try:
        parsed = _parse_url(url)
    except StorageError:
        scheme = re.match(r"[\w+]+://", url)
        return f"{scheme[0] if scheme else ''}***"
    options = {name: values if name in SHOWN_OPTIONS else "***" for name, values in parsed.query.items()}
    return parsed.set(query=options).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


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
    """Return a driver's message without what `show_url` hides; options of up to 3 characters are not taken for secrets."""
    parsed = sqlalchemy.make_url(url)
    hidden = [value for name, value in parsed.normalized_query.items() if name not in SHOWN_OPTIONS]
    secrets = {str(parsed.password or ""), *(value for values in hidden for value in values if len(value) > 3)} - {""}
    for secret in sorted(secrets, key=len, reverse=True):
        for written in (secret, urllib.parse.quote_plus(secret), urllib.parse.quote(secret, safe="")):
            text = text.replace(written, "***")
    return text


class _ReportingStorage(RDBStorage):
    """Optuna's storage, every failure of which is a `StorageError`, after which the next call connects again.

    Without a database, Optuna's methods also raise `UnboundLocalError`, and SQLAlchemy's session then refuses all later work as
    an "invalid transaction".
    """

    shown_url: str


def _with_storage_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: _ReportingStorage, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except (ValueError, TypeError, DuplicatedStudyError, UpdateFinishedTrialError):
            raise
        except Exception as error:
            if isinstance(error, KeyError) and method.__name__ == "get_study_id_from_name":
                raise  # the study does not exist yet
            with contextlib.suppress(Exception):
                self.scoped_session.remove()
            self.scoped_session.registry.clear()
            self.engine.dispose()
            reason = _reason(error, self.url).rstrip(".")
            raise StorageError(
                f"storage={self.shown_url} failed: {reason}. Finished work is kept; once the database is back, the same "
                "command continues"
            ) from error

    return call


for _name, _method in vars(RDBStorage).items():
    # Those with an underscore are called by Optuna's cache.
    if inspect.isfunction(_method) and (
        not _name.startswith("_")
        or _name in ("_create_new_trial", "_set_trial_param", "_get_trials", "_get_stale_trial_ids")
    ):
        setattr(_ReportingStorage, _name, _with_storage_errors(_method))


class SharedStorage(_ReportingStorage):
    """A storage with a write lock in SQLite and a heartbeat from before a trial runs.

    Args:
        url: as SQLAlchemy writes it.
        heartbeat: seconds between two heartbeats of a running trial.
        grace: seconds without a heartbeat after which its worker counts as dead.
    """

    def __init__(self, url: str, *, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> None:
        parsed = sqlalchemy.make_url(url)
        self.shown_url = show_url(url)
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
            super().record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat, or warn if the database is away: the next one may arrive."""
        try:
            super().record_heartbeat(trial_id)
        except StorageError as error:
            get_logger().warning("no heartbeat is recorded: %s", error)


def open_storage(url: str, *, heartbeat: int = HEARTBEAT_SECONDS, grace: int = GRACE_SECONDS) -> SharedStorage:
    """Connect to a database, and create Optuna's tables if they are missing; arguments as for `SharedStorage`.

    Raises:
        StorageError: no such kind of database, no driver, unreachable within CONNECT_SECONDS, or not writable.
    """
    shown = check_storage(url)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # progress shows what becomes of trials
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
    while not getattr(error, "orig", None) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).split("\n")
    text = " ".join(line.strip() for line in lines[:3]).strip() or type(error).__name__
    return _without_secrets(text, url)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Optuna: its heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        yield
