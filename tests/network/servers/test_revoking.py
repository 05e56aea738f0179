"""A server whose keys somebody else has: it is cut off from all others within a heartbeat, and comes back with new ones."""

import errno
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from cluster.config import credentials_of
from cluster.errors import GodwitError
from cluster.messages import ListUnknown, Ping
from cluster.rpc.connection import ask_once
from cluster.rpc.wire import A_MANAGER, Party
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from lab.lab import Lab
from tests.network.servers.test_membership import OVERRIDES, refusal, server, wait_for_state
from tests.support.conditions import godwit, readmit, wait_until
from tests.support.labs import lab_up

WITHIN_S = 4.0  # a heartbeat of a second, and the time that a command takes to start


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_up(tmp_path / "lab", overrides=OVERRIDES) as made:
        yield made


def other_than_manager(lab: Lab) -> tuple[str, str]:
    """The manager's server, and another one."""
    manager = str(godwit(lab, "status")["manager"])
    return manager, next(name for name in lab.servers if name != manager)


def answer_of(lab: Lab, name: str, part: str, who: Credentials) -> str:
    """What a part of a server says to somebody: empty if it answers."""
    config = lab.config(name)

    async def ask() -> str:
        try:
            if part == "manager":
                await ask_once(config.manager.listen, Ping(config.cluster), who, A_MANAGER, timeout_s=3)
            else:
                await ask_once(config.agent.listen, ListUnknown(), who, Party(Role.AGENT), timeout_s=3)
        except GodwitError as error:
            return str(error)
        return ""

    return trio.run(ask)


def _is_revoked(lab: Lab, name: str, part: str, who: Credentials) -> bool:
    return "was revoked" in answer_of(lab, name, part, who)


def test_a_revoked_server_is_cut_off_everywhere_at_once_and_comes_back_with_new_keys(lab: Lab, tmp_path: Path) -> None:
    manager, victim = other_than_manager(lab)
    (third,) = set(lab.servers) - {manager, victim}
    assert "is the manager: godwit manager step-down first" in refusal(lab, "servers", "revoke", manager)
    assert "there are: s1, s2, s3" in refusal(lab, "servers", "revoke", "s7")
    (lab.mount(victim) / "before").write_bytes(b"before")
    # Somebody has copied its keys.
    shutil.copytree(lab.config(victim).trust, tmp_path / "stolen")
    stolen = {role: Credentials(TrustFolder(tmp_path / "stolen"), role) for role in Role}
    assert answer_of(lab, third, "manager", stolen[Role.AGENT]) == ""
    assert answer_of(lab, third, "agent", stolen[Role.ADMIN]) == ""

    godwit(lab, "servers", "revoke", victim)
    revoked_s = time.monotonic()
    for name in (manager, third):
        for part, role in (("manager", Role.AGENT), ("manager", Role.ADMIN), ("agent", Role.ADMIN)):
            wait_until(
                partial(_is_revoked, lab, name, part, stolen[role]),
                f"the {part} of {name} does not believe the {role}",
                WITHIN_S,
            )
    assert time.monotonic() - revoked_s < 2 * WITHIN_S
    assert server(lab, victim)["roles"] == []
    # Others take it for nobody as well: its manager is none.
    mine = credentials_of(lab.config(third), Role.MOUNT)
    assert mine.revoked[victim] == 2
    assert "was revoked" in answer_of(lab, victim, "manager", mine)
    with pytest.raises(OSError, match="Input/output error") as failed:
        (lab.mount(victim) / "before").read_bytes()
    assert failed.value.errno == errno.EIO
    (lab.mount(manager) / "without").write_bytes(b"it goes on without")

    # It is kept: a part that starts believes it no more, whoever is the manager.
    for part in ("manager", "agent"):
        lab.kill(third, part)
        lab.start(third, part)
    wait_for_state(lab, third, "up")
    assert "was revoked" in answer_of(lab, third, "manager", stolen[Role.AGENT])

    added = readmit(lab, victim)
    assert added["outcome"] == "readmitted"
    wait_for_state(lab, victim, "up")
    wait_until(lambda: server(lab, victim)["roles"] == ["agent", "mount"], "its processes are back")
    assert (lab.mount(victim) / "before").read_bytes() == b"before"
    (lab.mount(victim) / "after").write_bytes(b"after")
    assert (lab.mount(third) / "after").read_bytes() == b"after"
    assert credentials_of(lab.config(victim), Role.AGENT).identity.epoch == 2
    # The stolen keys are as void as before.
    assert "was revoked" in answer_of(lab, manager, "manager", stolen[Role.MOUNT])
    # And its manager may have the office.
    assert lab.config(victim).manager.listen in {
        candidate["address"] for candidate in godwit(lab, "manager", "show")["candidates"] if candidate["answers"]
    }
