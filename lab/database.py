"""A PostgreSQL server of the lab's own, from Debian's packages: where it is, how it is made and started, when it answers.

    DIR/db/data   DIR/db/log/postgres.log      in the namespace godwit-<tag>-db, with an address on the servers' network

It refuses to be root. Its user may have no way to the lab's folder, so its processes see `DIR/db` as `BOUND_AT`, in a mount
namespace that is theirs alone. What it acknowledges is durable: no setting trades that away.
"""

import os
import pwd
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

from cluster.errors import Refused
from cluster.runtime import PUBLIC, RUNTIME, make_runtime_directory
from lab.launch import NotReady, tail
from lab.network import enter, processes_in
from lab.processes import ProcessId, end, identify, is_alive, spawn
from lab.tools import ENVIRONMENT, ToolFailed, tool

DATABASE = "db"
PART = "postgres"
PORT = 5432  # PostgreSQL's own: the address is the lab's alone
ROLE = "godwit"
NAME = "godwit"
# Debian has each major version's programs in a folder of its own, and none of them in PATH
PROGRAMS = Path("/usr/lib/postgresql")
BOUND_AT = RUNTIME / "database"  # mount point of `DIR/db`, in the mount namespace of the database's processes
USERS = ("postgres", "nobody")  # the first that the machine has
CREATE_TIMEOUT_S = 120.0  # initdb writes and syncs some thousand files
CONNECTIONS_MAX = 300  # each candidate of the largest lab keeps a few
POLL_S = 0.05  # between questions of pg_isready
STOP_PATIENCE_S = 15.0

# Passwords also from the lab's own network: other users of this machine reach its addresses, too.
HOSTS_ALLOWED = f"host {NAME} {ROLE} samenet scram-sha-256\n"
_SEE_FOLDER = 'mount --bind -- "$1" "$2" && cd -- "$2" && shift 2 && exec "$@"'


def database_url(address: str, password: str) -> str:
    """The catalog's URL on a lab's own PostgreSQL."""
    return f"postgresql+psycopg://{ROLE}:{password}@{address}:{PORT}/{NAME}"


def require_postgres(folder: Path, programs: Path = PROGRAMS) -> Path:
    """Those of *programs* that fit the data in *folder*, or the newest; raises `Refused` with the package that is missing."""
    if find_spec("psycopg") is None:
        raise Refused("PostgreSQL needs the Python package psycopg, which is missing here: pip install 'godwit[postgres]'")
    installed = {path.parent.parent.name: path.parent for path in programs.glob("*/bin/postgres")}
    try:
        made_by = (folder / "data" / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        # Data are bound to the major version that made them: the newest only for a new database.
        made_by = max(installed, key=float, default="")
    if made_by not in installed:
        package = f"postgresql-{made_by}" if made_by else "postgresql"
        raise Refused(f"a lab with its own PostgreSQL needs what is missing here: {programs} (package {package})")
    return installed[made_by]


def create_database(folder: Path, password: str) -> None:
    """Makes the data in *folder* unless they are there; an attempt that was interrupted is begun anew."""
    programs = require_postgres(folder)
    if (folder / "data").exists():
        return
    user = _user()
    (folder / "log").mkdir(parents=True, exist_ok=True)
    # initdb makes its folder in here as that user.
    os.chown(folder, user.pw_uid, user.pw_gid)
    begun = folder / "data.new"
    if begun.exists():
        # An attempt that did not come to the rename below: nothing in it was ever used.
        shutil.rmtree(begun)
    bound = str(BOUND_AT / begun.name)
    # `trust` until pg_hba.conf is replaced: nothing listens before that. C: names are bytes, and sort as such.
    initdb = [str(programs / "initdb"), "-D", bound, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]
    tool(_as_user(folder, user, initdb), timeout_s=CREATE_TIMEOUT_S)
    (begun / "pg_hba.conf").write_text(HOSTS_ALLOWED)
    settings = ["-c", "password_encryption=scram-sha-256", "-c", "exit_on_error=on"]
    # Single-user mode reads statements from stdin, one a line, and needs no port.
    single = [str(programs / "postgres"), "--single", "-D", bound, *settings, "postgres"]
    # The password is of hex digits: it needs no quoting.
    statements = f"CREATE ROLE {ROLE} LOGIN PASSWORD '{password}'\nCREATE DATABASE {NAME} OWNER {ROLE}\n"
    tool(_as_user(folder, user, single), statements, timeout_s=CREATE_TIMEOUT_S)
    # Whole or not there: `create_database` takes a folder of this name for a finished one.
    begun.rename(folder / "data")


def launch_database(folder: Path, address: str, namespace: str) -> ProcessId:
    """Starts the server, after what is left of an earlier one is ended."""
    end([process for pid in processes_in(namespace) if (process := identify(pid))], STOP_PATIENCE_S)
    # A number in the file of a server that was killed may belong to some other process of this user by now.
    (folder / "data" / "postmaster.pid").unlink(missing_ok=True)
    server = [str(require_postgres(folder) / "postgres"), "-D", str(BOUND_AT / "data"), "-h", address, "-p", str(PORT)]
    for setting in ("unix_socket_directories=", f"max_connections={CONNECTIONS_MAX}"):
        server += ["-c", setting]
    # PGDATA, PGPORT and their like in the caller's environment would be obeyed.
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("PG")}
    return spawn(enter(namespace, _as_user(folder, _user(), server)), database_log(folder), environment)


def wait_for_database(process: ProcessId, folder: Path, address: str, namespace: str, deadline_s: float) -> None:
    """Returns when the server accepts connections; raises `NotReady` if it has ended or when it is too late."""
    asking = enter(
        namespace,
        [str(require_postgres(folder) / "pg_isready"), "-q", "-h", address, "-p", str(PORT), "-U", ROLE, "-d", NAME, "-t", "2"],
    )
    while True:
        if not is_alive(process):
            log = database_log(folder)
            raise NotReady(f"{DATABASE} ended while it was being started; the end of {log}:\n{tail(log)}")
        try:
            tool(asking)
            return
        except ToolFailed:
            if time.monotonic() > deadline_s:
                log = database_log(folder)
                raise NotReady(f"{DATABASE} did not become ready in time; the end of {log}:\n{tail(log)}") from None
        time.sleep(POLL_S)


def database_log(folder: Path) -> Path:
    return folder / "log" / f"{PART}.log"


def _user() -> pwd.struct_passwd:
    for name in USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Refused(f"PostgreSQL refuses to be root, and this machine has no user {' or '.join(USERS)}")


def _as_user(folder: Path, user: pwd.struct_passwd, argv: list[str]) -> list[str]:
    """The command line that runs *argv* as *user*, to whom *folder* is at `BOUND_AT`."""
    make_runtime_directory(BOUND_AT, PUBLIC)
    become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--", *argv]
    return [
        "unshare",
        "--mount",
        # The bind mount below must not appear in the machine's own tree.
        "--propagation=private",
        "--",
        "sh",
        "-c",
        _SEE_FOLDER,
        "sh",
        str(folder),
        str(BOUND_AT),
        *become,
    ]
