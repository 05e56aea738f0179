"""PostgreSQL's own programs, which make backups and bring them back."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from sqlalchemy import URL, make_url

from cluster.errors import Refused


def find_program(name: str) -> str:
    """The program's path; raises `Refused` if it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise Refused(f"{name} is missing here (Debian's package postgresql-client)")
    return found


def postgres_place(url: str) -> tuple[str, dict[str, str]]:
    """The database as PostgreSQL's own programs take it, without its password, and the environment that has that.

    Raises `Refused` for the password of a key, which they take on the command line only.
    """
    place = make_url(url)
    if "sslpassword" in place.query:
        raise Refused(
            "the database's URL has the password of a key, which PostgreSQL's programs take only where others see it: "
            "give the manager a key without one"
        )
    # As for SQLAlchemy, what the options say counts more.
    password = place.query.get("password", place.password)
    options = place.difference_update_query(["password"]).query
    plain = URL.create("postgresql", place.username, None, place.host, place.port, place.database, options)
    return plain.render_as_string(), {} if password is None else {"PGPASSWORD": str(password)}


def run_postgres(url: str, program: str, arguments: Sequence[str]) -> None:
    """Runs one of PostgreSQL's programs on a database; its password is not on the command line. Raises `Refused`."""
    path = find_program(program)
    database, secret = postgres_place(url)
    done = subprocess.run(
        [path, f"--dbname={database}", *arguments], env={**os.environ, **secret}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        complaint = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Refused(f"{program}: {complaint[0]}")
