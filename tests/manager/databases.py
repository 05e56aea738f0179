"""Databases for tests: SQLite files always, PostgreSQL where Debian's binaries are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine, make_url

from manager.catalog.engines import make_engines
from manager.catalog.upgrade import upgrade

MEMORY = "/dev/shm"
SERVER_BYTES = 1 << 30


def postgres_binaries() -> Path | None:
    """The newest installed PostgreSQL, if it can be run here."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found or os.geteuid() != 0 or shutil.which("setpriv") is None:
        return None
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return None
    return found[-1].parent


def in_memory() -> str | None:
    """A folder in memory with room for a server, if there is one: tests make hundreds of databases."""
    try:
        return MEMORY if shutil.disk_usage(MEMORY).free > SERVER_BYTES else None
    except FileNotFoundError:
        return None


def make_catalog(url: str) -> None:
    """Gives a new SQLite file the tables of a catalog; on PostgreSQL every database is made with them."""
    place = make_url(url)
    if place.get_backend_name() == "sqlite":
        assert place.database is not None
        path = Path(place.database)
        if not path.exists():
            path.write_bytes(_new_catalog())


@cache
def _new_catalog() -> bytes:
    """The file of a catalog of this version that holds nothing yet: a copy costs a hundredth of what all upgrades cost."""
    with tempfile.TemporaryDirectory(prefix="godwit-catalog-", dir=in_memory()) as directory:
        path = Path(directory) / "catalog.db"
        writer, reader = make_engines(f"sqlite:///{path}")
        upgrade(writer)
        writer.dispose()
        reader.dispose()
        return path.read_bytes()


class Postgres:
    """A running server on a unix socket; every database is a copy of one that has been migrated."""

    def __init__(self, socket_dir: Path) -> None:
        self._url = f"postgresql+psycopg://postgres@/{{}}?host={socket_dir}"
        self._count = 0
        self._admin = create_engine(self._url.format("postgres"), isolation_level="AUTOCOMMIT")
        self._execute("CREATE DATABASE migrated")
        writer, reader = make_engines(self._url.format("migrated"))
        upgrade(writer)
        writer.dispose()
        reader.dispose()

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.exec_driver_sql(statement)

    @contextmanager
    def new_database(self, template: str = "migrated STRATEGY file_copy") -> Iterator[str]:
        """The URL of a fresh database, which is gone afterwards."""
        self._count += 1
        name = f"test{self._count}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield self._url.format(name)
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        self._admin.dispose()


@contextmanager
def running_postgres(binaries: Path) -> Iterator[Postgres]:
    """A server in a temporary directory of the user `postgres`."""
    user = pwd.getpwnam("postgres")
    with tempfile.TemporaryDirectory(prefix="godwit-pg-", dir=in_memory()) as directory:
        root = Path(directory)
        os.chown(root, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        data = root / "data"
        initdb = [*as_user, str(binaries / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=root)
        options = f"-k {root} -c listen_addresses= -c fsync=off -c max_connections=50 -c max_wal_size=64MB"
        control = [*as_user, str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(root / "log")]
        subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True, cwd=root)
        server = None
        try:
            server = Postgres(root)
            yield server
        finally:
            if server is not None:
                server.close()
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd=root)
