"""The authority is replaced under load, without an operation that fails, whoever dies meanwhile or is away."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cluster.config import credentials_of
from cluster.errors import Unavailable
from cluster.messages import Ping
from cluster.rpc.connection import ask_once, connect
from cluster.rpc.wire import A_MANAGER
from cluster.trust.authority import Authority
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.issue import issue
from lab.lab import Lab
from tests.support.conditions import godwit, wait_until
from tests.support.labs import lab_up
from tests.support.runner import heed_interrupts
from tests.support.steady import loads_on

LIFE_S = 120  # of certificates: an agent renews for a mount that is not there after a twelfth
ROTATED_S = 60.0  # for all of a rotation in which nobody is away


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_up(tmp_path / "lab", overrides={"manager": {"certificate_s": LIFE_S}}) as made:
        yield made


def rotate(lab: Lab) -> subprocess.Popen[str]:
    """`godwit certs rotate-ca`, which goes on."""
    command = [sys.executable, "-bb", "-m", "cli.main", "certs", "rotate-ca", "--timeout", "30", "--root", str(lab.root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts)


def status(lab: Lab) -> dict[str, Any]:
    return godwit(lab, "certs", "rotate-ca", "--status")


def finished(running: subprocess.Popen[str], timeout_s: float = ROTATED_S) -> str:
    """What it has printed."""
    said, _ = running.communicate(timeout=timeout_s)
    assert running.returncode == 0, said
    return said


def folder_of(lab: Lab, name: str) -> TrustFolder:
    return TrustFolder(lab.config(name).trust)


def forged(lab: Lab, by: Authority, path: Path) -> Credentials:
    """What somebody makes himself who has copied the key of an authority."""
    believed = folder_of(lab, "s1").read_authorities()
    issue(TrustFolder(path), by, lab.config("s1").cluster, "s1", roles=[Role.AGENT], believed=believed)
    return Credentials(TrustFolder(path), Role.AGENT)


def test_it_is_replaced_twice_under_load_though_the_manager_dies(lab: Lab, tmp_path: Path, tell: Callable[[str], None]) -> None:
    stolen = folder_of(lab, "s1").read_authority()
    before = status(lab)
    assert (before["phase"], before["revision"], before["waiting"]) == (None, 0, [])
    with loads_on(lab, "s1", "s2", "s3") as loads:
        began_s = time.monotonic()
        said = finished(rotate(lab))
        tell(f"the first took {time.monotonic() - began_s:.1f} s:\n{said}")
        assert "authority 2 signs, and is the only one that is believed" in said
        # The manager is killed as soon as the second has begun.
        running = rotate(lab)
        assert running.stdout is not None
        assert "the new authority is being made known" in running.stdout.readline()
        manager = godwit(lab, "status")["manager"]
        lab.kill(manager, "manager", signal.SIGKILL)
        lab.start(manager, "manager")
        said = finished(running)
        assert "authority 3 signs, and is the only one that is believed" in said
    assert min(load.turns for load in loads) > 50
    tell(f"{sum(load.turns for load in loads)} turns, the slowest took {max(load.slowest_s for load in loads):.1f} s")
    pins = {folder_of(lab, name).read_authority().pin for name in lab.servers}
    assert len(pins) == 1
    found = status(lab)
    assert (found["phase"], found["waiting"]) == (None, [])
    assert [(one["number"], one["authority"]) for one in found["authorities"]] == [(3, pins.pop())]
    for name in lab.servers:
        for role in Role:
            mine = credentials_of(lab.config(name), role)
            assert (mine.numbers, mine.authority) == ((3,), 3), (name, role)
    listed = godwit(lab, "certs", "ls", "--all")["certificates"]
    assert {one["authority"] for one in listed} == {3}
    assert {(one["server"], one["role"]) for one in listed} >= {(name, role) for name in lab.servers for role in Role}
    # Nothing that is of the first gets in any more, whoever it names.
    void = forged(lab, stolen, tmp_path / "stolen")
    for name in lab.servers:
        with pytest.raises(Unavailable):
            trio.run(_ping, lab, name, void)


async def _ping(lab: Lab, name: str, who: Credentials) -> None:
    config = lab.config(name)
    await ask_once(config.manager.listen, Ping(config.cluster), who, A_MANAGER, timeout_s=3)


def _waits_for(lab: Lab, server: str) -> list[dict[str, Any]]:
    """Who is waited for, if that is this server alone."""
    waits: list[dict[str, Any]] = status(lab)["waiting"]
    return waits if {one["server"] for one in waits} == {server} else []


def test_who_is_away_holds_it_up_and_is_named(lab: Lab, tmp_path: Path) -> None:
    manager = str(godwit(lab, "status")["manager"])
    away, third = (name for name in lab.servers if name != manager)
    mine = folder_of(lab, "s1").read_authority()
    # All that the catalog knows of: nobody who has never been there is taken for one who has followed.
    wait_until(lambda: len(godwit(lab, "certs", "ls", "--all")["certificates"]) >= 12, "all have shown their certificates")
    for part in ("mount", "agent", "manager"):
        lab.kill(away, part)
    lab.kill(third, "mount")
    mount = credentials_of(lab.config(third), Role.MOUNT)
    running = rotate(lab)
    try:
        # Its agent says for the mount of the third that it believes; nobody does for those of the one that is away.
        waits = wait_until(partial(_waits_for, lab, away), "only one is away", 45)
        assert {one["role"] for one in waits} == {"manager", "agent", "mount", "admin"}
        assert status(lab)["phase"] == "introduced"
        # Who only watches may go.
        watching = rotate(lab)
        wait_until(lambda: watching.stdout is not None and watching.stdout.readline(), "it shows something", 20)
        watching.send_signal(signal.SIGINT)
        said, _ = watching.communicate(timeout=20)
        assert (watching.returncode, "the rotation goes on" in said) == (130, True)
        lab.start(away)
        wait_until(lambda: status(lab)["phase"] == "leaving", "the new one signs", 30)
        trio.run(_cut_off_at_its_end, lab, forged(lab, mine, tmp_path / "stolen"), manager)
        said = finished(running)
    finally:
        running.kill()
    assert f"manager of {away}" in said
    # The mount that did not run has a certificate of the new one, and starts with it.
    after = credentials_of(lab.config(third), Role.MOUNT)
    assert (after.authority, mount.authority) == (2, 1)
    lab.start(third, "mount")
    (lab.mount(third) / "file").write_bytes(b"after")
    assert (lab.mount(away) / "file").read_bytes() == b"after"


async def _cut_off_at_its_end(lab: Lab, void: Credentials, manager: str) -> None:
    """A connection with a certificate of the old one lasts as long as that is believed."""
    config = lab.config(manager)
    async with trio.open_nursery() as nursery:
        channel = await connect(config.manager.listen, nursery, void, A_MANAGER, timeout_s=5)
        await channel.call(Ping(config.cluster), timeout_s=5)
        with trio.fail_after(75):
            await channel.broken.wait()
        nursery.cancel_scope.cancel()
    with pytest.raises(Unavailable):
        await _ping(lab, manager, void)
