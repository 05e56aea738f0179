"""A process whose network changes its authority: when it asks for a new certificate, and whom it believes no more."""

import time
from functools import partial
from pathlib import Path

import pytest
import trio

from cluster.decoding import from_msgpack
from cluster.errors import Unavailable
from cluster.messages import MANAGER_UNION, AskAuthority
from cluster.rpc.connection import connect
from cluster.rpc.serving import listen
from cluster.rpc.wire import A_MANAGER, Wire
from cluster.trust.authority import Authority
from cluster.trust.believed import listing
from cluster.trust.credentials import SUPERSEDED_S, Credentials, NotBelieved
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.issue import issue
from tests.agent.network import free_address
from tests.cli.test_admission import Candidate

FIRST, SECOND = Authority.make("test"), Authority.make("test", 2)
BOTH = listing(1, [FIRST.pem, SECOND.pem])
SIGNS = listing(2, [SECOND.pem, FIRST.pem])
ONE = listing(3, [SECOND.pem])


def folder_of(tmp_path: Path, server: str, by: Authority, believed: bytes) -> TrustFolder:
    folder = TrustFolder(tmp_path / server)
    issue(folder, by, "test", server, believed=believed)
    return folder


def test_a_certificate_is_renewed_at_once_that_is_not_of_the_authority_that_signs(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "s1", FIRST, FIRST.pem)
    mine = Credentials(folder, Role.AGENT)
    for believed, numbers, revision in ((FIRST.pem, (1,), 0), (BOTH, (1, 2), 1)):
        folder.write_authorities(believed)
        mine.refresh()
        assert (mine.numbers, mine.revision, mine.is_superseded) == (numbers, revision, False)
        assert mine.renewed_from_s > time.time() + 86400
    folder.write_authorities(SIGNS)
    mine.refresh()
    assert (mine.numbers, mine.revision, mine.is_superseded) == ((2, 1), 2, True)
    assert mine.renewed_from_s <= time.time()
    issue(folder, SECOND, "test", "s1", believed=SIGNS)
    mine.refresh()
    assert (mine.numbers, mine.is_superseded) == ((2, 1), False)
    assert mine.renewed_from_s > time.time() + 86400


async def test_connections_with_an_authority_end_when_it_is_dropped(tmp_path: Path) -> None:
    manager = Credentials(folder_of(tmp_path, "s1", SECOND, SIGNS), Role.MANAGER)
    old, new = (Credentials(folder_of(tmp_path, name, by, SIGNS), Role.AGENT) for name, by in (("s2", FIRST), ("s3", SECOND)))
    address = free_address()
    async with trio.open_nursery() as nursery:
        make = Candidate(SIGNS).to
        await nursery.start(partial(listen, address, from_msgpack(MANAGER_UNION), make, manager))
        channels = [await connect(address, nursery, who, A_MANAGER, timeout_s=5) for who in (old, new)]
        for channel in channels:
            await channel.call(AskAuthority(), timeout_s=5)
        assert {wire.peer.authority for wire in manager.connections} == {1, 2}
        manager.folder.write_authorities(ONE)
        manager.refresh()
        with trio.fail_after(5):
            await channels[0].broken.wait()
        await channels[1].call(AskAuthority(), timeout_s=5)
        assert {wire.peer.authority for wire in manager.connections if isinstance(wire, Wire) and not wire.closed} == {2}
        # Nor is a session resumed that was made before.
        with pytest.raises(Unavailable):
            await (await connect(address, nursery, old, A_MANAGER, timeout_s=5)).call(AskAuthority(), timeout_s=5)
        await (await connect(address, nursery, new, A_MANAGER, timeout_s=5)).call(AskAuthority(), timeout_s=5)
        nursery.cancel_scope.cancel()


async def test_the_asking_end_hangs_up_as_well(tmp_path: Path) -> None:
    manager = Credentials(folder_of(tmp_path, "s1", FIRST, SIGNS), Role.MANAGER)
    mine = Credentials(folder_of(tmp_path, "s2", SECOND, SIGNS), Role.AGENT)
    address = free_address()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(listen, address, from_msgpack(MANAGER_UNION), Candidate(SIGNS).to, manager))
        channel = await connect(address, nursery, mine, A_MANAGER, timeout_s=5)
        await channel.call(AskAuthority(), timeout_s=5)
        # Who is there gets another certificate soon: a connection is not used for long.
        (wire,) = mine.connections
        assert wire.peer.replace_s <= time.time() + SUPERSEDED_S
        mine.folder.write_authorities(ONE)
        mine.refresh()
        assert isinstance(wire, Wire)
        assert wire.closed
        with pytest.raises(Unavailable, match="not one of this network"):
            await connect(address, nursery, mine, A_MANAGER, timeout_s=5)
        nursery.cancel_scope.cancel()


def test_what_was_verified_before_the_list_changed_is_judged_by_the_new_one(tmp_path: Path) -> None:
    mine = Credentials(folder_of(tmp_path, "s1", SECOND, SIGNS), Role.AGENT)
    shown = {
        "subjectAltName": (("URI", "godwit://test/s2/mount?epoch=1"),),
        "issuer": ((("commonName", "godwit test authority 1"),),),
        "notAfter": "Jan  1 00:00:00 2040 GMT",
    }
    assert mine.judge(shown) is not None
    mine.folder.write_authorities(ONE)
    mine.refresh()
    with pytest.raises(NotBelieved, match="authority 1, which is not believed"):
        mine.judge(shown)
