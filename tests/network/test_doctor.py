"""`godwit doctor` on a network: nothing to be done where all is well, and what is wrong where something is."""

import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from cli import exits
from cluster.config import load_config, write_config
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.issue import issue
from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from lab.launch import PYTHON
from tests.agent.disks import disk_in
from tests.network.odd_owners import NAME, VARIABLE
from tests.support.labs import lab_up
from tests.support.runner import godwit, godwit_process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root")

PATIENCE = "30"  # seconds; what answers late on a busy machine is not away
STATES = ("status", "servers", "queue", "migrations", "events")
BUSY = ("an fsync takes", "nearly full", "nearly out of inodes")  # what may be so on any machine on which tests run


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab_up(tmp_path_factory.mktemp("doctor") / "lab", servers=2) as made:
        yield made


def doctor(*arguments: str) -> list[dict[str, Any]]:
    """The checks; the exit code is what they make it."""
    done = godwit("doctor", *arguments, "--json", "--timeout", PATIENCE)
    assert done.stderr == ""
    said = msgspec.json.decode(done.stdout)
    troubles = [check for check in said["checks"] if check["verdict"] in ("warning", "failure")]
    assert (done.returncode, said["ok"]) == (exits.ATTENTION if troubles else 0, not troubles)
    checks: list[dict[str, Any]] = said["checks"]
    return checks


def troubles(checks: list[dict[str, Any]]) -> dict[str, str]:
    """What is wrong, by subject, without what only says that the machine is busy."""
    bad = [check for check in checks if check["verdict"] in ("warning", "failure")]
    assert all(check["advice"] for check in bad)
    return {check["subject"]: check["text"] for check in bad if not any(words in check["text"] for words in BUSY)}


def test_nothing_is_wrong_where_all_is_well(lab: Lab) -> None:
    checks = doctor("--root", str(lab.root))
    assert troubles(checks) == {}
    assert {check["field"] for check in checks} == {"machine", "disks", "certificates", "catalog", "network", "health"}
    assert {"agent s1", "agent s2", "manager s1", "manager s2", "database", "owners"} <= {check["subject"] for check in checks}


def test_people_can_read_it(lab: Lab) -> None:
    done = godwit("doctor", "--root", str(lab.root))
    assert done.stdout.isascii()
    long = [line for line in done.stdout.splitlines() if len(line) > 80 and "/" not in line]
    assert long == []
    assert "\nok       agent s2: " in done.stdout
    quiet = godwit("doctor", "--root", str(lab.root), "--quiet").stdout
    assert "\nok " not in quiet


def test_a_certificate_that_was_not_renewed(lab: Lab, tmp_path: Path) -> None:
    """With the configuration of one server, whose folder is a copy here."""
    mine = load_config(lab.config_path("s2"))
    shutil.copytree(mine.trust, tmp_path / "trust")
    folder, file = TrustFolder(tmp_path / "trust"), tmp_path / "godwit.toml"
    write_config(file, msgspec.structs.replace(mine, trust=str(folder.path)))
    assert troubles(doctor("--config", str(file))) == {}
    issue(folder, folder.read_authority(), mine.cluster, "s2", roles=[Role.MOUNT], valid_s=0.0)
    found = troubles(doctor("--config", str(file)))
    assert set(found) == {"s2 mount"}
    assert "it has ended" in found["s2 mount"]


def test_a_disk_that_hangs_holds_up_nobody_who_waits_for_the_command(lab: Lab, tmp_path: Path) -> None:
    """Not even by what cannot be killed while it waits for the disk: its output is read to the end here."""
    mine, file = load_config(lab.config_path("s1")), tmp_path / "godwit.toml"
    with disk_in(tmp_path) as disk:
        VolumeLayout(disk).prepare(mine.cluster, "s1")
        agent = msgspec.structs.replace(mine.agent, volumes=[str(disk), *mine.agent.volumes])
        write_config(file, msgspec.structs.replace(mine, agent=agent))
        subprocess.run(["fsfreeze", "--freeze", disk], check=True, timeout=60)
        try:
            done = godwit_process("doctor", "--config", str(file), "--json", "--timeout", "4", timeout_s=60)
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", disk], check=True, timeout=60)
    assert done.returncode == exits.ATTENTION, done
    disks = {check["subject"]: check for check in msgspec.json.decode(done.stdout)["checks"] if check["field"] == "disks"}
    assert disks.pop(f"s1 {disk}")["text"] == "no answer within 4 s"
    assert troubles(list(disks.values())) == {}


FOLDER, FILE, TEXT = "Zwergpinguin Gehalt", "Uhu \xe4\udcff.ods", "Kolibri"
PASSWORD, TOKEN = "Kuckuck/7&", "GW1.5f3e.Wiedehopf"


def plant(lab: Lab) -> None:
    """Has names of files, of which some are in words that Godwit knows, come into tasks, migrations, events and logs."""
    folder = lab.mount("s1") / FOLDER / "secret volume"
    folder.mkdir(parents=True)
    (folder / FILE).write_text(TEXT)
    godwit("policy", "set", str(folder.parent), "--copies", "2", "--root", str(lab.root))
    lab.kill("s2", "agent")
    (folder / f"{FILE}2").write_text(TEXT)
    godwit("migrate", str(folder), "--from", "s1", "--to", "s2", "--root", str(lab.root))
    with lab.log("s1", "agent").open("ab") as log:
        path = os.fsencode(f"/{FOLDER}/secret volume/{FILE}")
        log.write(b"2026-12-01T07:28:14.123 WARNING s1 agent: what this server alone had of inode 7 is kept as " + path + b"\n")
        log.write(f"cannot reach postgresql://godwit:{PASSWORD}@h/g with {TOKEN} of {PASSWORD}\n".encode())


def contents(bundle: Path) -> dict[str, bytes]:
    with tarfile.open(bundle) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_a_bundle_has_no_names_and_no_secrets(lab: Lab, tmp_path: Path) -> None:
    plant(lab)
    try:
        bundle = tmp_path / "doctor.tar.gz"
        done = godwit("doctor", "--root", str(lab.root), "--bundle", str(bundle), "--timeout", PATIENCE)
    finally:
        lab.start("s2", "agent")
    assert done.returncode == exits.ATTENTION
    assert f"{bundle}: " in done.stdout
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [bundle.name]
    parts = contents(bundle)
    whole = b"\n".join([*map(os.fsencode, parts), *parts.values()])
    trust = TrustFolder(load_config(lab.config_path("s1")).trust)
    keys = [line for role in Role for line in trust.credential(role).read_bytes().splitlines() if len(line) == 64]
    names = [b"Zwergpinguin", b"Gehalt", b"Uhu", b"secret volume", b"Kolibri", b"Kuckuck", b"Wiedehopf"]
    for planted in (*names, *keys, trust.master.read_bytes()):
        assert planted not in whole
    # It says something all the same.
    state = {name: msgspec.json.decode(parts[f"godwit-doctor/state/{name}.json"]) for name in STATES}
    assert [task["path"] for task in state["queue"]["tasks"] if task["path"].count("/~") == 3]
    assert all(path.count("/~") == 2 for path in state["migrations"]["migrations"][0]["paths"])
    assert [event for event in state["events"]["events"] if event["message"].startswith("the policy of /~")]
    assert {server["server"] for server in state["servers"]["servers"]} == {"s1", "s2"}
    assert b"is kept as /~" in parts["godwit-doctor/logs/s1-agent.log"]
    assert msgspec.json.decode(parts["godwit-doctor/findings.json"])["checks"]
    assert b'server = "s2"' in parts["godwit-doctor/config/s2.toml"]


def test_a_bundle_without_a_manager(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server whose database has a password, and whose managers are away."""
    mine, file, bundle = load_config(lab.config_path("s1")), tmp_path / "godwit.toml", tmp_path / "doctor.tar.gz"
    url = f"postgresql+psycopg://godwit:{quote(PASSWORD, safe='')}@127.0.0.1:1/godwit"
    manager = msgspec.structs.replace(mine.manager, database=url)
    write_config(file, msgspec.structs.replace(mine, manager=manager, managers=["127.0.0.1:1"], state=str(tmp_path)))
    arguments = ("doctor", "--config", str(file), "--timeout", "1", "--bundle", str(bundle))
    assert godwit(*arguments).returncode == exits.ATTENTION
    parts = contents(bundle)
    whole = b"\n".join(parts.values())
    assert b"Kuckuck" not in whole
    assert b"postgresql+psycopg://godwit:***@127.0.0.1:1/godwit" in parts["godwit-doctor/config/s1.toml"]
    assert "error" in msgspec.json.decode(parts["godwit-doctor/state/status.json"])
    # What is there is replaced only by who says so.
    bundle.write_bytes(b"mine")
    refused = godwit(*arguments)
    assert (refused.returncode, "--force" in refused.stderr, bundle.read_bytes()) == (exits.FAILURE, True, b"mine")
    assert godwit(*arguments, "--force").returncode == exits.ATTENTION
    assert tarfile.is_tarfile(bundle)


def test_a_server_that_is_away_and_owners_that_differ(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Lab(lab.root, {"agent": [*PYTHON, "tests.network.odd_owners"]})
    for server, number in (("s1", "54321"), ("s2", "54322")):
        lab.kill(server, "agent")
        assert f"agent {server}" in troubles(doctor("--root", str(lab.root)))
        monkeypatch.setenv(VARIABLE, number)
        odd.start(server, "agent")
    assert troubles(doctor("--root", str(lab.root)))["owners"] == f"user {NAME} is 54321 on s1, 54322 on s2"
