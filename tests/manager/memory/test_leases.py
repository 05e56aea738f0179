"""The manager's table of leases, and what depends on it: who may take a file for finished, where a home may go."""

from cluster.clock import monotonic_s
from cluster.leases import READ, SHARED, WRITE, LeaseToken, Sealer, margin_s, read_token
from cluster.messages import PROTOCOL as VERSION
from cluster.messages import AskLeases, Close, Closing, Hello, LeaseRows, ListLeases, ListUnsettled, Open, OpenInode
from manager.memory.leases import Leases
from tests.manager.office import SECRET, Office, Peer, in_office, small_network, until

ACCESS_S = 15.0


def tokens(sealed: list[bytes]) -> list[LeaseToken]:
    return [Sealer(SECRET).open(item) for item in sealed]


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
        assert (first.server, first.mode) == ("s1", SHARED)
        assert second.mode == SHARED
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
        forged = Sealer("00" * 32).seal(read_token(token))
        other = Peer(office, "s1", "mount", mount.number)
        hello = Hello(VERSION, "test", "s1", "mount", mount.number, [OpenInode(made.ino, True)], [forged, token, b""])
        await other.ask(hello)
        assert leases_of(office).is_written(made.ino)
        assert len(leases_of(office)) == 1
        assert office.state.in_grace
        await office.three_servers()
        assert (await asked(other, made.ino))[0].mode == SHARED


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
