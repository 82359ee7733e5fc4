"""A PostgreSQL server for the commands that share a database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from postgresql_server import postgresql_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql_server() as url:
        yield url
