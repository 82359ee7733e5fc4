"""Databases that cannot be used: each is refused at once, in words, and no password is shown."""

from __future__ import annotations

import builtins
import multiprocessing
import re
import socket
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy

from glora.experiments.search import storage as study_storage
from glora.experiments.search.storage import StorageError, check_storage, open_storage, show_url, sqlite_url
from unit.experiments.search.search_case import together


def refused(url: str) -> str:
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_does_not_run_is_reported_at_once_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    message = refused(f"postgresql://me:secret@127.0.0.1:{port}/studies")
    assert time.monotonic() - began < 5
    assert message.startswith(f"storage=postgresql://me:***@127.0.0.1:{port}/studies: ")
    assert "refused" in message.lower()
    assert "server, port, user, password" in message


def test_a_server_that_does_not_answer_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr(study_storage, "CONNECT_SECONDS", 2)
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        message = refused(f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/studies")
    assert time.monotonic() - began < 10
    assert "timeout" in message


def test_a_password_in_what_the_driver_says_is_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise sqlalchemy.exc.OperationalError(None, None, Exception("login with secret%word failed: key=top+secret"))

    monkeypatch.setattr(study_storage, "SharedStorage", fail)
    message = refused("postgresql+psycopg://me:secret%25word@nowhere/studies?api_key=top+secret")
    assert "login with *** failed: key=***" in message


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [("postgresql://h/d", "psycopg", "psycopg[binary]"), ("mysql+pymysql://h/d", "pymysql", "pymysql")],
)
def test_a_missing_driver_is_named_with_what_to_install(
    url: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: object) -> object:
        if name.split(".", maxsplit=1)[0] == module and arguments[3:] in ((), (0,)):  # no relative import
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return original(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    for loaded in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    assert re.search(f"driver {module} .*pip install '{re.escape(package)}'", refused(url))


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("search.db", "not a database URL; write sqlite:///search.db"),
        ("", "not a database URL"),
        ("postgres://me:secret@h/d", "unknown database 'postgres'; write"),
        ("redis://:secret@h", "storage=redis://:***@h: unknown database 'redis'"),
        ("sqlite://", "in memory and would be lost"),
        ("sqlite:///no/such/folder/search.db", "unable to open database file; name a writable file"),
    ],
)
def test_urls_that_cannot_be_a_storage(url: str, part: str) -> None:
    assert part in refused(url)


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "search.db").write_text("not a database, but long enough to be looked at " * 20)
    assert "not a database" in refused(sqlite_url(tmp_path))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql://me:secret@h/d?password=secret&passwd=secret&sslmode=require",
            "postgresql://me:***@h/d",
        ),
        ("postgresql://h/d?user=me;password=secret", "postgresql://h/d"),
        ("postgresql://me:sec@secret@h/d", "***"),
        ("postgresql://me@server:secret@h/d", "***"),
        ("postgresql://h?password=se@cret", "***"),
        ("postgresql://me:secret@h:port/d", "***"),
        ("postgresql://me:1@h:secret@h/d", "***"),
        ("me:secret@h/d", "***"),
        ("sqlite:////home/me@work/search.db", "sqlite:////home/me%40work/search.db"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert show_url(url).endswith(shown)
    assert "cret" not in show_url(url)
    try:
        message = check_storage(url)
    except StorageError as error:
        message = str(error)
    assert "cret" not in message


def test_every_folder_has_a_url(tmp_path: Path) -> None:
    folder = tmp_path / "100% of a?b=c #1 {x} é@y"
    folder.mkdir()
    open_storage(sqlite_url(folder)).engine.dispose()
    assert (folder / "search.db").is_file()


def test_checking_connects_to_nothing(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    assert check_storage("postgresql://me:secret@nowhere.invalid/d") == "postgresql://me:***@nowhere.invalid/d"
    check_storage(sqlite_url(tmp_path))
    assert not list(tmp_path.iterdir())


def test_processes_that_begin_together_make_the_tables_together(tmp_path: Path) -> None:
    together_now = multiprocessing.get_context("fork").Barrier(4)

    def begin() -> None:
        together_now.wait()
        open_storage(sqlite_url(tmp_path))

    assert together([begin] * 4) == [0] * 4
