"""A PostgreSQL server for the tests, from the machine's own package: on loopback, in a temporary folder, with a password.

initdb and postgres refuse to run as root, so root's tests run them as the package's user `postgres`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

USER, PASSWORD = "glora", "not-a-secret"


def find_binaries() -> Path | None:
    """The folder of initdb and pg_ctl; Debian keeps them out of the PATH."""
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return Path(on_path).parent if on_path else debian[-1].parent if debian else None


@contextlib.contextmanager
def postgresql_server() -> Iterator[str]:
    """The URL of a new database; skips the test where PostgreSQL is not installed, but not in CI."""
    binaries = find_binaries()
    for missing, remedy in (
        ("PostgreSQL" if binaries is None else "", ".ci/install_packages"),
        ("psycopg" if importlib.util.find_spec("psycopg") is None else "", "pip install 'psycopg[binary]'"),
    ):
        if missing and os.environ.get("CI") == "true":
            pytest.fail(f"{missing} is not installed, and in CI it has to be: {remedy}")
        if missing:
            pytest.skip(f"{missing} is not installed: {remedy}")
    assert binaries is not None
    owner = pwd.getpwnam("postgres") if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="glora-postgresql-", dir="/tmp") as folder:
        home, data, password = Path(folder), Path(folder, "data"), Path(folder, "password")
        password.write_text(PASSWORD)
        if owner:
            for path in (home, password):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def call(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [str(binaries / program), *arguments],
                cwd=home,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would stay open as long as it runs
                stderr=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
                timeout=120,
                **({"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}),  # type: ignore[call-overload]
            )
            assert done.returncode == 0, f"{program}: {done.stderr!r}"

        call("initdb", "-D", str(data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        call("pg_ctl", "-D", str(data), "-o", options, "-l", str(home / "log"), "-w", "start")
        try:
            yield f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
