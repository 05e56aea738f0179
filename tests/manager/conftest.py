"""Every engine that is there gets the same tests."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio.testing

from tests.manager.databases import Postgres, make_catalog, postgres_binaries, running_postgres
from tests.manager.office import Office, in_office
from tests.support.clocks import movable_clock

_BINARIES = postgres_binaries()


@pytest.fixture(autouse=True)
def clock(request: pytest.FixtureRequest) -> trio.testing.MockClock | None:
    """The clock of async tests, unless they have asked for another; see `tests.support.clocks`."""
    return None if "autojump_clock" in request.fixturenames else movable_clock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    assert _BINARIES is not None
    with running_postgres(_BINARIES) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.skipif(_BINARIES is None, reason="no PostgreSQL"))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with a catalog's tables for one test."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path}/catalog.db"
        make_catalog(made)
        yield made
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.new_database() as made:
        yield made


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A migrated database on PostgreSQL, for what only happens there."""
    if _BINARIES is None:
        pytest.skip("no PostgreSQL")
    server: Postgres = request.getfixturevalue("postgres")
    with server.new_database() as made:
        yield made


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A database that is not there yet, for what only happens to files; `in_office` makes its tables."""
    return f"sqlite:///{tmp_path}/catalog.db"


@pytest.fixture
def office(url: str) -> AbstractAsyncContextManager[Office]:
    """The next term of a fresh catalog, without servers."""
    return in_office(url)
