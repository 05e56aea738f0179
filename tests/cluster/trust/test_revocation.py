"""Who was revoked is not believed any more: what is connected is closed, what is remembered only grows, files are found again."""

from functools import partial
from pathlib import Path

import pytest
import trio

from cluster.decoding import from_msgpack
from cluster.errors import Refused, Unavailable
from cluster.messages import MANAGER_UNION, AskAuthority
from cluster.rpc.connection import connect
from cluster.rpc.revocation import heed
from cluster.rpc.serving import listen
from cluster.rpc.wire import A_MANAGER
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Identity, Role
from cluster.trust.issue import issue
from tests.agent.network import free_address
from tests.cli.test_admission import Candidate
from tests.support.trust import authority, raw


def folder_of(tmp_path: Path, server: str, epoch: int = 1) -> TrustFolder:
    folder = TrustFolder(tmp_path / server)
    issue(folder, authority(), "test", server, epoch=epoch)
    return folder


async def test_connections_of_the_revoked_are_closed_and_it_hears_why(tmp_path: Path) -> None:
    manager = Credentials(folder_of(tmp_path, "s1"), Role.MANAGER)
    agent, other = (Credentials(folder_of(tmp_path, name), Role.AGENT) for name in ("s2", "s3"))
    address = free_address()
    async with trio.open_nursery() as nursery:
        make = Candidate(authority().pem).to
        await nursery.start(partial(listen, address, from_msgpack(MANAGER_UNION), make, manager))
        channels = [await connect(address, nursery, who, A_MANAGER, timeout_s=5) for who in (agent, other)]
        for channel in channels:
            await channel.call(AskAuthority(), timeout_s=5)
        await heed(manager, {"s2": 2})
        with trio.fail_after(5):
            await channels[0].broken.wait()
        await channels[1].call(AskAuthority(), timeout_s=5)
        again = await connect(address, nursery, agent, A_MANAGER, timeout_s=5)
        with pytest.raises(Unavailable, match="the agent of s2 was revoked"):
            await again.call(AskAuthority(), timeout_s=5)
        # With new keys it is let in, also by who has been there before.
        issue(agent.folder, authority(), "test", "s2", epoch=2)
        there = await connect(address, nursery, agent, A_MANAGER, timeout_s=5)
        await there.call(AskAuthority(), timeout_s=5)
        assert agent.identity.epoch == 2
        nursery.cancel_scope.cancel()


async def test_who_is_turned_away_hears_why_whatever_it_has_sent_by_then(tmp_path: Path) -> None:
    """A connection that is closed with something left to read is reset, and what was sent last is lost."""
    manager, agent = (Credentials(folder_of(tmp_path, name), role) for name, role in (("s1", Role.MANAGER), ("s2", Role.AGENT)))
    await heed(manager, {"s2": 2})
    address = free_address()
    async with trio.open_nursery() as nursery:
        make = Candidate(authority().pem).to
        await nursery.start(partial(listen, address, from_msgpack(MANAGER_UNION), make, manager))
        for _ in range(20):
            stream = await raw(address, agent)
            await stream.send_all(bytes(100_000))
            await trio.sleep(0.01)
            assert b"the agent of s2 was revoked" in bytes(await stream.receive_some(1000))
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_what_is_void_stays_void(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "s1")
    credentials = Credentials(folder, Role.AGENT)
    await heed(credentials, {"s2": 3, "s3": 2})
    await heed(credentials, {"s2": 2})
    assert credentials.revoked == {"s2": 3, "s3": 2}
    assert Credentials(folder, Role.MOUNT).revoked == {"s2": 3, "s3": 2}
    assert credentials.is_revoked(Identity("test", "s2", Role.MOUNT, 2))
    assert not credentials.is_revoked(Identity("test", "s2", Role.MOUNT, 3))
    folder.add_revoked({"s2": 1, "s4": 5})
    assert folder.read_revoked() == {"s2": 3, "s3": 2, "s4": 5}
    # Its file is gone: what the process knows already, it goes on knowing.
    folder.revoked.unlink()
    credentials.reload()
    assert credentials.revoked == {"s2": 3, "s3": 2}


def test_files_of_somebody_else_are_not_taken_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "s1")
    credentials = Credentials(folder, Role.AGENT)
    generation = credentials.generation
    credentials.refresh()
    assert credentials.generation == generation
    issue(folder, authority(), "test", "s2")
    with pytest.raises(Refused, match="the agent of s2"):
        credentials.reload()
    credentials.refresh()
    assert (credentials.generation, credentials.identity.server) == (generation, "s1")
    issue(folder, authority(), "test", "s1", epoch=7)
    credentials.refresh()
    assert (credentials.generation, credentials.identity.epoch) == (generation + 1, 7)
    folder.revoked.write_text("{")
    with pytest.raises(Refused, match="cannot be read"):
        Credentials(folder, Role.AGENT)
