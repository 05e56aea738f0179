"""A lab with a PostgreSQL of its own: made, found again, killed, started, cut off, and nothing left behind."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.errors import Refused
from lab import database
from lab.lab import Lab
from lab.network import processes_in
from lab.state import PARTS, read_state, write_state
from tests.lab.test_lab import crash, remains
from tests.support.conditions import wait_until
from tests.support.runner import godwit_process as godwit

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root"),
    pytest.mark.skipif(not list(database.PROGRAMS.glob("*/bin/postgres")), reason="no PostgreSQL: package postgresql"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Below a folder into which the database's user has no way, as the tests' temporary folders are."""
    folder = tmp_path_factory.mktemp("only root's")
    folder.chmod(0o700)
    made = Lab.create(folder / "lab", servers=1, db="postgresql")
    try:
        made.up()
        yield made
    finally:
        made.down(purge=True)
    assert remains(made.root) == []
    assert not made.root.exists()


def processes_of_database(lab: Lab) -> list[int]:
    return processes_in(lab._network().namespace(database.DATABASE))


def setting(lab: Lab, name: str) -> str:
    """What the running server says of one of its settings."""
    (programs,) = {path.parent for path in database.PROGRAMS.glob("*/bin/psql")}
    state = read_state(lab.root)
    target = f"host={lab.address('db')} user=godwit dbname=godwit"
    asking = [str(programs / "psql"), "--no-psqlrc", "-At", "-c", f"SHOW {name}", target]
    done = lab.run("s1", asking, capture_output=True, text=True, check=True, env={**os.environ, "PGPASSWORD": state.password})
    return str(done.stdout.strip())


def test_the_catalog_is_in_the_labs_own_database(lab: Lab) -> None:
    assert lab.servers == ["s1"]
    assert lab.is_running("db")
    assert lab.config("s1").manager.database.startswith("postgresql+psycopg://godwit:")
    (lab.mount("s1") / "hello").write_bytes(b"hello")
    assert (lab.root / "catalog").is_dir()
    assert not list((lab.root / "catalog").iterdir())
    shown = json.loads(godwit("lab", "ls", "--json", "--root", str(lab.root)).stdout)["labs"][0]
    assert shown["database"] == {
        "address": lab.address("db"),
        "data": f"{lab.root}/db/data",
        "pid": lab.pid("db", "postgres"),
        "cut": False,
    }
    assert " db " in godwit("lab", "ls", "--root", str(lab.root)).stdout
    assert "ready to accept connections" in godwit("lab", "logs", "db", "--root", str(lab.root)).stdout


def test_what_it_acknowledges_is_durable(lab: Lab) -> None:
    assert {name: setting(lab, name) for name in ("fsync", "synchronous_commit", "full_page_writes")} == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
    }


def test_a_password_is_asked_for(lab: Lab) -> None:
    (programs,) = {path.parent for path in database.PROGRAMS.glob("*/bin/psql")}
    target = f"host={lab.address('db')} user=godwit dbname=godwit"
    asking = [str(programs / "psql"), "--no-psqlrc", "--no-password", "-At", "-c", "SELECT 1", target]
    done = lab.run("s1", asking, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "password" in done.stderr


def test_it_is_killed_whole_and_started(lab: Lab) -> None:
    before = lab.pid("db", "postgres")
    assert len(processes_of_database(lab)) > 3
    assert godwit("lab", "kill", "db", "--root", str(lab.root)).returncode == 0
    assert processes_of_database(lab) == []
    assert not lab.is_running("db")
    assert godwit("lab", "kill", "db", "agent", "--root", str(lab.root)).returncode == 1
    assert godwit("lab", "start", "db", "--root", str(lab.root)).returncode == 0
    assert lab.pid("db", "postgres") != before
    assert (lab.mount("s1") / "hello").read_bytes() == b"hello"


def test_it_is_started_again_when_it_dies(lab: Lab) -> None:
    before = lab.pid("db", "postgres")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: lab.find_pid("db", "postgres") not in (None, before), "it is started again", 20)
    assert (lab.mount("s1") / "hello").read_bytes() == b"hello"
    (lab.mount("s1") / "written after it died").write_bytes(b"hello")


def test_it_is_stopped_whole_and_goes_on(lab: Lab) -> None:
    lab.kill("db", number=signal.SIGSTOP)
    states = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in processes_of_database(lab)}
    lab.kill("db", number=signal.SIGCONT)
    assert states == {"T"}
    assert (lab.mount("s1") / "hello").read_bytes() == b"hello"


def test_it_is_cut_off_and_mended(lab: Lab) -> None:
    lab.cut("db")
    try:
        assert lab.is_cut("db")
        assert not lab.is_cut("s1")
    finally:
        lab.mend("db")
    (lab.mount("s1") / "after").write_bytes(b"after")


def test_it_has_no_parts_of_a_server(lab: Lab) -> None:
    for wrong in (lab.mount, lab.volume, lab.config):
        with pytest.raises(Refused, match="no server 'db'"):
            wrong("db")


# --------------------------------------------------------------------------------------------- labs of their own


def test_up_finds_the_data_again_also_after_a_crash_of_everything(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1, db="postgresql")
    try:
        lab.up()
        (lab.mount("s1") / "kept").write_bytes(b"kept")
        lab.down()
        assert remains(lab.root) == []
        log = lab.log("db", "postgres").read_text()
        assert "received fast shutdown request" in log
        assert "was not properly shut down" not in log
        lab.up()
        crash(lab, PARTS)
        for pid in processes_of_database(lab):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not processes_of_database(lab), "it ends", 30)
        lab.up()
        assert (lab.mount("s1") / "kept").read_bytes() == b"kept"
        assert "was not properly shut down" in lab.log("db", "postgres").read_text()
    finally:
        lab.down(purge=True)
    assert remains(lab.root) == []
    assert not lab.root.exists()


def test_down_ends_a_database_that_the_lab_had_no_time_to_note(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1, db="postgresql")
    try:
        lab.up()
        pids = processes_of_database(lab)
        state = read_state(lab.root)
        known = {name: process for name, process in state.processes.items() if not name.startswith("db/")}
        write_state(lab.root, msgspec.structs.replace(state, processes=known))
        lab.down()
        assert remains(lab.root) == []
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    finally:
        lab.down(purge=True)


def test_a_creation_that_was_interrupted_is_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    (folder / "data.new" / "base").mkdir(parents=True)
    database.create_database(folder, "0123456789abcdef")
    made = (folder / "data" / "PG_VERSION").stat()
    assert not (folder / "data.new").exists()
    database.create_database(folder, "0123456789abcdef")
    assert (folder / "data" / "PG_VERSION").stat() == made


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("7\n")
    with pytest.raises(Refused, match="package postgresql-7"):
        database.require_postgres(tmp_path)
    with pytest.raises(Refused, match=r"package postgresql\)"):
        database.require_postgres(tmp_path / "new", tmp_path / "nowhere")


def test_its_processes_leave_no_mount_for_others_to_see(lab: Lab) -> None:
    assert str(database.BOUND_AT) not in Path("/proc/self/mountinfo").read_text()
    inside = Path(f"/proc/{lab.pid('db', 'postgres')}/mountinfo").read_text()
    assert str(database.BOUND_AT) in inside
    owner = subprocess.run(["stat", "-c", "%U", f"/proc/{lab.pid('db', 'postgres')}"], capture_output=True, text=True, check=True)
    assert owner.stdout.strip() in database.USERS
