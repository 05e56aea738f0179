"""The manager's table of leases, and what depends on it: who may take a file for finished, where a home may go."""

import itertools
from contextlib import suppress

import pytest
from msgspec.structs import replace

from cluster.clock import monotonic_s
from cluster.errors import TokenRefused, Unavailable
from cluster.leases import READ, SHARED, WRITE, LeaseKeys, LeaseToken, Sealer, margin_s, read_token
from cluster.messages import PROTOCOL as VERSION
from cluster.messages import ROOT_INO, AskLeases, Close, Closing, Hello, LeaseRows, ListLeases, ListUnsettled, Open, OpenInode
from manager.memory.leases import Leases
from tests.manager.office import SECRET, Office, Peer, in_office, small_network, until

ACCESS_S = 15.0
KEYS = LeaseKeys(SECRET)


def tokens(sealed: list[bytes]) -> list[LeaseToken]:
    return [KEYS.open(item) for item in sealed]


def takers(sealed: bytes) -> list[str]:
    """The servers whose agents take a token, by the keys that they have."""
    taking = []
    for server in ("", "s1", "s2", "s3"):
        with suppress(TokenRefused):
            Sealer(KEYS.key_of(server)).open(sealed)
            taking.append(server)
    return taking


async def asked(peer: Peer, *inodes: int) -> list[LeaseToken]:
    return tokens((await peer.ask(AskLeases(list(inodes)))).tokens)


async def opened(peer: Peer, ino: int, *, write: bool, sequence: int = 1) -> LeaseToken:
    return read_token((await peer.ask(Open(ino, write, sequence))).token)


def leases_of(office: Office) -> Leases:
    return office.state.leases


async def test_a_token_names_inode_mode_holder_home_version_epoch_and_term(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        await mount.commit(made.ino, 1)
        token = await opened(mount, made.ino, write=True)
        assert (token.ino, token.mode, token.holder) == (made.ino, WRITE, "s1")
        assert (token.home_volume, token.address, token.home_epoch) == (1, "127.0.0.1:7602", 1)
        assert (token.version, token.term, token.access_s) == (1, office.number, ACCESS_S)


async def test_a_created_file_comes_with_its_token_also_when_the_reply_is_repeated(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        assert leases_of(office).is_written(made.ino)
        (lease,) = leases_of(office).ending_first(ino=made.ino)
        assert lease.token is not None
        assert lease.token.mode == WRITE


async def test_only_the_home_writes_alone(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        other = await office.peer("s2")
        assert (await opened(other, made.ino, write=True)).mode == SHARED
        (first, second) = leases_of(office).ending_first(ino=made.ino)
        assert (first.server, first.mode(monotonic_s())) == ("s1", SHARED)
        assert second.mode(monotonic_s()) == SHARED
        assert (await asked(mount, made.ino))[0].mode == SHARED


async def test_readers_read_unless_somebody_writes(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        await mount.commit(made.ino, 1)
        await mount.ask(Close([Closing(made.ino, 1)]))
        second, third = await office.peer("s2"), await office.peer("s3")
        assert (await opened(second, made.ino, write=False)).mode == READ
        assert (await opened(third, made.ino, write=False)).mode == READ
        assert (await opened(mount, made.ino, write=True, sequence=2)).mode == SHARED, "the others are not gone yet"
        assert (await asked(second, made.ino))[0].mode == SHARED


async def test_who_closes_may_only_read_from_then_on(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        await mount.commit(made.ino, 1)
        assert not office.state.may_move_home(made.ino)
        await mount.ask(Close([Closing(made.ino, 1)]))
        assert not leases_of(office).is_written(made.ino)
        assert office.state.may_move_home(made.ino)
        assert (await asked(mount, made.ino))[0].mode == READ


async def test_asking_again_is_a_renewal_and_unknown_inodes_get_none(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        before = leases_of(office).counts.renewed.value
        reply = await mount.ask(AskLeases([made.ino, 99_999]))
        assert reply.tokens[1] == b""
        assert leases_of(office).counts.renewed.value == before + 1
        assert leases_of(office).counts.refused.value == 1


async def test_leases_end_after_their_time_and_not_before(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        granted = monotonic_s()
        leases = leases_of(office)
        leases.expire(granted + ACCESS_S)
        assert leases.is_written(made.ino), "the margin is not over"
        leases.expire(granted + ACCESS_S + margin_s(ACCESS_S) + 1)
        assert not leases.is_written(made.ino)
        assert leases.counts.expired.value == 1
        assert len(leases) == 0


async def test_what_a_vanished_writer_wrote_is_settled_only_after_its_lease(url: str) -> None:
    """It may go on writing at its own home until its deadline, whether or not the manager hears it."""

    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        assert office.term is not None
        agent = await office.peer("s1", "agent")
        office.term.end_session(next(s for s in office.state.sessions.all() if s.number == mount.number))
        assert (await agent.ask(ListUnsettled(10))).inodes == []
        assert not office.state.may_move_home(made.ino)
        leases_of(office).expire(monotonic_s() + 2 * ACCESS_S)
        assert (await agent.ask(ListUnsettled(10))).inodes == [made.ino]


async def test_a_mount_that_took_over_on_its_server_proves_the_old_one_dead(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        await office.peer("s1", "mount")
        assert not leases_of(office).is_written(made.ino)


async def test_a_new_manager_adopts_what_is_presented_and_lets_nobody_write_alone_before(url: str) -> None:
    async with small_network(url) as (_office, mount):
        made = await mount.make(b"file")
        token = (await mount.ask(Open(made.ino, True, 1))).token
    async with in_office(url) as office:
        odd = [
            LeaseKeys(bytes(32)).seal(read_token(token)),
            # By who knows the key of s2 only, for whomever; and good ones of another holder.
            *(
                Sealer(KEYS.key_of("s2")).seal(replace(read_token(token), checked_by=name, ino=ROOT_INO))
                for name in ("s1", "", "s3")
            ),
            KEYS.seal(replace(read_token(token), holder="s2", ino=ROOT_INO)),
            b"",
        ]
        other = Peer(office, "s1", "mount", mount.number)
        hello = Hello(VERSION, "test", "s1", "mount", mount.number, [OpenInode(made.ino, True)], [*odd, token])
        await other.ask(hello)
        assert leases_of(office).is_written(made.ino)
        assert len(leases_of(office)) == 1
        assert office.state.in_grace
        await office.three_servers()
        assert (await asked(other, made.ino))[0].mode == SHARED


async def test_what_is_presented_is_adopted_though_the_volume_has_another_server_by_now(url: str) -> None:
    async with small_network(url) as (_office, mount):
        made = await mount.make(b"file")
        token = (await mount.ask(Open(made.ino, True, 1))).token
        assert takers(token) == ["s1"]
    async with in_office(url) as office:
        # The disk was carried over.
        assert await (await office.peer("s2", "agent")).volume("u1") == 1
        again = Peer(office, "s1", "mount", mount.number)
        await again.ask(Hello(VERSION, "test", "s1", "mount", mount.number, [OpenInode(made.ino, True)], [token]))
        assert leases_of(office).is_written(made.ino)
        (renewed,) = (await again.ask(AskLeases([made.ino]))).tokens
        assert takers(renewed) == ["s2"]


async def test_a_token_is_for_the_agent_of_the_home_and_no_other(url: str) -> None:
    async with small_network(url) as (office, mount):
        other = await office.peer("s2")
        for volume, server in ((1, "s1"), (3, "s3")):
            made = await mount.make(b"%d" % volume, home_volume=volume)
            for peer in (mount, other):
                (token,) = (await peer.ask(AskLeases([made.ino]))).tokens
                assert takers(token) == [server]
                assert read_token(token).holder == peer.server
                assert takers((await peer.ask(Open(made.ino, False, 1))).token) == [server]
        (folder,) = (await mount.ask(AskLeases([ROOT_INO]))).tokens
        assert takers(folder) == [""], "a key that no agent has"


async def test_passes_are_for_the_agent_that_has_the_volume_and_nobodys_lease(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        reader, agent = await office.peer("s3"), await office.peer("s3", "agent")
        for peer, volume, server in ((reader, 2, "s2"), (agent, 2, "s2"), (agent, 3, "s3"), (agent, 0, "s1")):
            given, unknown = (await peer.ask(AskLeases([made.ino, 99_999], volume))).tokens
            assert (takers(given), unknown) == ([server], b"")
            token = read_token(given)
            assert (token.ino, token.mode, token.holder, token.term) == (made.ino, READ, "s3", office.number)
        assert [lease.server for lease in leases_of(office).ending_first(ino=made.ino)] == ["s1"]
        with pytest.raises(Unavailable, match="volume 99 is of no server"):
            await reader.ask(AskLeases([made.ino], 99))


async def test_a_copy_comes_with_a_pass_for_its_first_source(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        await mount.commit(made.ino, 1)
        await mount.ask(Close([Closing(made.ino, 1)]))
        agents = [await office.peer(f"s{number}", "agent") for number in (2, 3)]
        claimed = [(agent, task) for agent in agents for task in await agent.claim()]
        assert claimed
        for agent, task in claimed:
            assert task.sources[0].volume == 1
            assert takers(task.token) == ["s1"]
            assert read_token(task.token).holder == agent.server


async def test_only_agents_get_a_key_and_only_their_own(url: str) -> None:
    async with in_office(url) as office:
        numbers = itertools.count(1)
        for server in ("s1", "s2"):
            for role, key in (("agent", KEYS.key_of(server)), ("mount", b""), ("admin", b"")):
                assert (await Peer(office, server, role, next(numbers)).hello()).lease_key == key


async def test_a_removed_inode_has_no_leases(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        leases_of(office).gone(made.ino)
        assert len(leases_of(office)) == 0


async def test_the_list_says_who_holds_what(url: str) -> None:
    async with small_network(url) as (office, mount):
        made = await mount.make(b"file")
        other = await office.peer("s2")
        await opened(other, made.ino, write=False)
        listed: LeaseRows = await mount.ask(ListLeases())
        assert [(row.holder, row.path, row.home, row.is_open) for row in listed.leases] == [
            ("s1", b"/file", "s1", True),
            ("s2", b"/file", "s1", True),
        ]
        assert (listed.total, listed.access_s, listed.counts.granted) == (2, ACCESS_S, 2)
        assert [row.holder for row in (await mount.ask(ListLeases("s2"))).leases] == ["s2"]
        assert (await mount.ask(ListLeases("", 4))).leases == []
        assert (await mount.ask(ListLeases(limit=1))).total == 2


async def test_a_session_that_ends_in_silence_leaves_its_leases_to_their_time(url: str) -> None:
    async with small_network(url) as (office, mount):
        await mount.make(b"file")
        assert office.term is not None

        async def gone() -> bool:
            return not any(s.number == mount.number for s in office.state.sessions.all())

        for session in office.state.sessions.all():
            office.term.end_session(session)
        await until(gone)
        assert len(leases_of(office)) == 1
