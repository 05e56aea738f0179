"""Servers that fall silent, come back, are drained, leave and join. Time passes as the test says: nothing here waits for it."""

import errno
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
from sqlalchemy import Connection, func, select

from cluster.clock import monotonic_s
from cluster.errors import NotManager, Refused
from cluster.membership import DOWN_WANTED_EMPTY, DRAINING, Event, IllegalTransition, ServerState, Standing
from cluster.messages import (
    AddServer,
    ChangeMigration,
    DrainServer,
    FindStrays,
    GetServer,
    GetStatus,
    Heartbeat,
    ListMigrations,
    ListVolumes,
    Locate,
    LoseServer,
    RegisterVolumes,
    RemoveServer,
    Request,
    RevokeServer,
    ServerInfo,
    VolumeState,
)
from cluster.trust.tokens import digest_of, parse_token
from manager.catalog.schema import epochs, invitations, scans, servers, tasks, volume_scans
from manager.catalog.store import Transaction
from manager.changes.epochs import note_epoch
from manager.changes.standing import change_standing
from manager.workers.members import requeue_loop, tick_members
from tests.manager.changes.test_copies import agent_of, agents_of, where
from tests.manager.office import GIB, Office, Peer, in_office, small_network, until
from tests.support.trust import authority

SUSPECT_S = 7.0
DOWN_S = 600.0
REPORT_S = 2.0

T = TypeVar("T")


class Clock:
    """Time as the office is told that it passes."""

    def __init__(self, office: Office) -> None:
        assert office.term is not None
        self.office = office
        self.term = office.term
        self.now = monotonic_s()

    async def pass_by(self, seconds: float, *, heard: tuple[str, ...] = ()) -> None:
        """Lets time pass; the agents of *heard* report all the while, the others are silent."""
        until_s = self.now + seconds
        while self.now < until_s:
            self.now = min(self.now + REPORT_S, until_s)
            for server in heard:
                self.term.state.members.heard(server, self.now)
            await tick_members(self.term, self.now)

    async def go_down(self, server: str) -> None:
        others = tuple(name for name in ("s1", "s2", "s3") if name != server)
        await self.pass_by(DOWN_S + REPORT_S, heard=others)

    def state(self, server: str) -> ServerState:
        member = self.term.state.members.member(server)
        assert member is not None
        return member.state


async def told(office: Office, server: str, event: Event) -> Standing:
    assert office.term is not None
    term = office.term
    return await office.store.write(lambda tx: change_standing(tx, term.state, term.claims, server, event))


async def asked(office: Office, question: Callable[[Connection], T]) -> T:
    return await office.store.read(question)


async def scanned(office: Office) -> tuple[list[int], int]:
    """The volumes whose files are to be looked at, and how many directories are."""

    def ask(connection: Connection) -> tuple[list[int], int]:
        volumes = list(connection.execute(select(volume_scans.c.volume).order_by(volume_scans.c.volume)).scalars())
        return volumes, connection.execute(select(func.count()).select_from(scans)).scalar_one()

    return await asked(office, ask)


async def forget_scans(office: Office) -> None:
    def work(tx: Transaction) -> None:
        tx.execute(volume_scans.delete())
        tx.execute(scans.delete())

    await office.store.write(work)


async def stored(office: Office, server: str) -> tuple[str, int]:
    def ask(connection: Connection) -> tuple[str, int]:
        row = connection.execute(select(servers.c.state, servers.c.draining).where(servers.c.server == server)).one()
        return row.state, row.draining

    return await asked(office, ask)


async def info(peer: Peer, server: str) -> ServerInfo:
    return next(info for info in (await peer.ask(GetStatus())).servers if info.server == server)


async def copied_file(office: Office, mount: Peer, name: bytes) -> tuple[int, str]:
    """A clean file with its home on s1 and one copy; the inode and the server of the copy."""
    agents = await agents_of(office)
    node = await mount.make(name)
    await mount.commit(node.ino, 1)
    (pending,) = (await where(mount, node.ino)).pending
    (task,) = await agents[pending.server].claim()
    await agents[pending.server].done(task)
    return node.ino, pending.server


# ------------------------------------------------------------------------------------------------ silence and return


async def test_silence_is_noted_and_changes_nothing_about_copies(url: str) -> None:
    async with small_network(url) as (office, mount):
        clock = Clock(office)
        await forget_scans(office)
        await clock.pass_by(SUSPECT_S + REPORT_S, heard=("s1", "s3"))
        assert [clock.state(name) for name in ("s1", "s2", "s3")] == ["up", "suspect", "up"]
        volumes = {volume.server: volume for volume in (await mount.ask(ListVolumes())).volumes}
        assert (volumes["s2"].up, volumes["s2"].state) == (False, "suspect")
        assert (volumes["s1"].up, volumes["s1"].state) == (True, "up")
        place = office.state.members.places()[2]
        assert (place.up, place.counts, place.accepts) == (False, True, True)
        await clock.pass_by(DOWN_S - 2 * SUSPECT_S, heard=("s1", "s3"))
        await clock.pass_by(REPORT_S, heard=("s1", "s2", "s3"))
        assert clock.state("s2") == "up"
        assert await scanned(office) == ([], 0)
        assert await stored(office, "s2") == ("up", 0)


async def test_who_is_silent_too_long_is_down_and_stays_so_under_the_next_manager(url: str) -> None:
    async with small_network(url) as (office, _mount):
        clock = Clock(office)
        await forget_scans(office)
        await clock.go_down("s2")
        assert clock.state("s2") == "down"
        assert await scanned(office) == ([2], 0)
        place = office.state.members.places()[2]
        assert (place.up, place.counts, place.accepts) == (False, False, False)
        assert await stored(office, "s2") == ("down", 0)
    async with in_office(url, "s3") as office:
        clock = Clock(office)
        assert [clock.state(name) for name in ("s1", "s2", "s3")] == ["up", "down", "up"]
        assert not office.state.members.is_up("s2")
        await clock.pass_by(DOWN_S - REPORT_S)
        assert [clock.state(name) for name in ("s1", "s2", "s3")] == ["suspect", "down", "suspect"]
        await clock.pass_by(2 * REPORT_S)
        assert [clock.state(name) for name in ("s1", "s2", "s3")] == ["down", "down", "down"]


async def test_a_return_takes_steady_reports_and_is_one_transaction(url: str) -> None:
    async with small_network(url) as (office, mount):
        clock = Clock(office)
        await clock.go_down("s2")
        since = office.state.members.member("s2")
        await forget_scans(office)
        for _flap in range(5):
            await clock.pass_by(REPORT_S, heard=("s1", "s2", "s3"))
            await clock.pass_by(SUSPECT_S + REPORT_S, heard=("s1", "s3"))
        assert office.state.members.member("s2").since_ns == since.since_ns  # type: ignore[union-attr]
        assert await scanned(office) == ([], 0)
        await clock.pass_by(REPORT_S, heard=("s1", "s2", "s3"))
        assert (clock.state("s2"), office.state.members.is_up("s2")) == ("down", True)
        await clock.pass_by(SUSPECT_S + REPORT_S, heard=("s1", "s2", "s3"))
        assert clock.state("s2") == "up"
        assert await scanned(office) == ([2], 1)
        assert await stored(office, "s2") == ("up", 0)
        place = office.state.members.places()[2]
        assert (place.up, place.counts, place.accepts) == (True, True, True)
        assert (await info(mount, "s2")).state == "up"


async def test_a_draining_server_that_was_down_is_draining_again(url: str) -> None:
    async with small_network(url) as (office, _mount):
        clock = Clock(office)
        assert await told(office, "s2", Event.DRAIN) == DRAINING
        place = office.state.members.places()[2]
        assert (place.counts, place.accepts) == (True, False)
        await clock.go_down("s2")
        assert await stored(office, "s2") == ("down", 1)
        assert office.state.members.member("s2").standing == DOWN_WANTED_EMPTY  # type: ignore[union-attr]
    async with in_office(url, "s3") as office:
        clock = Clock(office)
        await clock.pass_by(SUSPECT_S + 2 * REPORT_S, heard=("s1", "s2", "s3"))
        assert clock.state("s2") == "draining"
        assert await stored(office, "s2") == ("up", 1)


async def test_an_event_that_cannot_be_changes_nothing(url: str) -> None:
    async with small_network(url) as (office, _mount):
        await forget_scans(office)
        for event in (Event.UNDRAIN, Event.ADD):
            with pytest.raises(IllegalTransition):
                await told(office, "s2", event)
        assert await stored(office, "s2") == ("up", 0)
        assert await scanned(office) == ([], 0)


async def test_a_server_that_is_down_gets_no_tasks_until_it_is_back(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        clock = Clock(office)
        node = await mount.make(b"f")
        await mount.commit(node.ino, 1)
        (pending,) = (await where(mount, node.ino)).pending
        target = pending.server
        (task,) = await agents[target].claim()
        await clock.go_down(target)
        (pending,) = (await where(mount, node.ino)).pending
        assert (pending.task, pending.state) == (task.task, "waiting")
        assert await agents[target].claim() == []
        with trio.move_on_after(0.2) as too_early:
            await agents[target].claim(wait_s=5.0)
        assert too_early.cancelled_caught
        async with trio.open_nursery() as nursery:
            claimed: list[Any] = []

            async def claim() -> None:
                claimed.extend(await agents[target].claim(wait_s=10.0))

            nursery.start_soon(claim)
            await clock.pass_by(SUSPECT_S + 2 * REPORT_S, heard=("s1", "s2", "s3"))
        assert [task.ino for task in claimed] == [node.ino]


# ------------------------------------------------------------------------------------------------ who they say they are


async def test_what_an_agent_says_of_its_server_is_kept(url: str) -> None:
    async with small_network(url) as (office, mount):
        agent = (await agents_of(office))["s2"]
        states = [VolumeState("u2", "/u2", 200 * GIB, 100 * GIB, "u2")]
        request = RegisterVolumes("10.0.0.2:7401", states, "10.0.0.2:7400", "1.2.3", ["/u2: nearly full"])
        await agent.ask(request)
        seen = await info(mount, "s2")
        assert (seen.manager, seen.release, seen.problems) == ("10.0.0.2:7400", "1.2.3", ["/u2: nearly full"])
        assert (await (await office.peer("s3", "mount")).hello()).managers == ["10.0.0.2:7400"]
        await agent.ask(RegisterVolumes("10.0.0.2:7401", states, "10.0.0.2:7400", "1.2.4"))
        assert (await info(mount, "s2")).problems == []
    async with in_office(url, "s3") as office:
        peer = await office.peer("s1")
        assert (await peer.hello()).managers == ["10.0.0.2:7400"]
        assert (await info(peer, "s2")).release == "1.2.4"


async def test_a_server_is_described_by_what_it_holds(url: str) -> None:
    async with small_network(url) as (office, mount):
        _ino, target = await copied_file(office, mount, b"clean")
        await mount.make(b"dirty")
        home = await mount.ask(GetServer("s1"))
        assert (home.is_manager, home.info.state, home.leases) == (True, "up", 2)
        held = home.holdings
        assert (held.replicas, held.current, held.homes, held.dirty, held.sole) == (2, 1, 2, 1, 0)
        held = (await mount.ask(GetServer(target))).holdings
        assert (held.replicas, held.current, held.homes, held.bytes, held.sole) == (1, 1, 0, 10, 0)
        await Clock(office).go_down("s1")
        assert (await mount.ask(GetServer(target))).holdings.sole == 1
        with pytest.raises(Refused, match=r"no server 's9'; there are: s1, s2, s3") as unknown:
            await mount.ask(GetServer("s9"))
        assert unknown.value.errno == errno.ENOENT


# ------------------------------------------------------------------------------------------------------------- leaving


async def test_a_server_that_holds_something_stays(url: str) -> None:
    async with small_network(url) as (office, mount):
        _ino, target = await copied_file(office, mount, b"f")
        peer = await office.peer("operator", "admin")
        with pytest.raises(Refused, match=rf"{target} is up and holds 1 replicas.*godwit drain {target}"):
            await peer.ask(RemoveServer(target))
        with pytest.raises(Refused, match="is the manager"):
            await peer.ask(RemoveServer("s1"))
        with pytest.raises(Refused, match="there are: s1, s2, s3"):
            await peer.ask(RemoveServer("s9"))
        assert await stored(office, target) == ("up", 0)


async def test_a_server_that_is_down_and_needed_stays(url: str) -> None:
    async with small_network(url) as (office, mount):
        ino, _target = await copied_file(office, mount, b"f")
    async with in_office(url, "s2") as office:
        clock = Clock(office)
        for server in ("s2", "s3"):
            await office.peer(server, "agent")
        await clock.go_down("s1")
        peer = await office.peer("operator", "admin")
        with pytest.raises(Refused, match="1 have their home there"):
            await peer.ask(RemoveServer("s1"))
        assert await stored(office, "s1") == ("down", 0)
        assert len((await (await office.peer("s3")).ask(Locate(ino))).replicas) == 2


async def test_a_server_that_is_down_and_not_needed_leaves_and_is_forgotten(url: str) -> None:
    async with small_network(url) as (office, mount):
        clock = Clock(office)
        found = [await copied_file(office, mount, b"%d" % number) for number in range(6)]
        target = found[0][1]
        expected = sum(holder == target for _ino, holder in found)
        waiting = await mount.make(b"planned")
        await mount.commit(waiting.ino, 1)
        await clock.go_down(target)
        peer = await office.peer("operator", "admin")
        assert (await peer.ask(RemoveServer(target))).count == expected
        assert await stored(office, target) == ("left", 0)
        assert (await peer.ask(RemoveServer(target))).count == 0
        number = int(target[1:])
        assert number not in office.state.members.places()
        assert number not in {volume.volume for volume in (await peer.ask(ListVolumes())).volumes}
        for ino, _holder in found:
            assert number not in {replica.volume for replica in (await mount.ask(Locate(ino))).replicas}

        def queued(connection: Connection) -> list[str]:
            return list(connection.execute(select(tasks.c.server)).scalars())

        assert target not in await asked(office, queued)
        (pending,) = (await where(peer, waiting.ino)).pending
        assert pending.server not in (target, "s1")
        agent = agent_of(office, pending.server)
        await agent.hello()
        assert waiting.ino in [task.ino for task in await agent.claim()]


async def test_who_has_left_is_not_let_in_until_it_is_added_again(url: str) -> None:
    async with small_network(url) as (office, mount):
        agent = (await agents_of(office))["s3"]
        other = await office.peer("s3", "mount")
        operator = await office.peer("operator", "admin")
        await operator.ask(RemoveServer("s3"))
        assert await stored(office, "s3") == ("left", 0)
        for peer in (agent, other):
            with pytest.raises(NotManager):
                await peer.ask(Heartbeat())
            with pytest.raises(Refused, match=r"s3 has left.*godwit servers add s3") as refusal:
                await peer.hello()
            assert refusal.value.errno == errno.EPERM
        with pytest.raises(Refused, match="volume 3"):
            await mount.make(b"f", home_volume=3)
        assert (await operator.ask(AddServer("s3"))).outcome == "readmitted"
        assert (await info(operator, "s3")).state == "suspect"
        await agent.hello()
        assert await agent.volume("u3") == 3
        assert (await info(operator, "s3")).state == "up"
        await mount.make(b"f", home_volume=3)


async def test_the_next_manager_does_not_let_in_who_has_left(url: str) -> None:
    async with small_network(url) as (office, _mount):
        await (await office.peer("operator", "admin")).ask(RemoveServer("s3"))
    async with in_office(url, "s2") as office:
        with pytest.raises(Refused, match="s3 has left"):
            await office.peer("s3", "agent")
        assert office.term is not None
        assert "s3" not in office.term.awaited


# -------------------------------------------------------------------------------------------------------------- coming


async def test_a_new_server_is_invited_with_one_token_at_a_time(url: str) -> None:
    async with small_network(url) as (office, mount):

        def invited(connection: Connection) -> list[tuple[bytes, str]]:
            rows = connection.execute(select(invitations.c.digest, invitations.c.server))
            return [(bytes(row.digest), row.server) for row in rows]

        first = await mount.ask(AddServer("s4", 60.0))
        assert (first.outcome, first.cluster, first.managers, first.expires_s) == (
            "invited",
            "test",
            ["127.0.0.1:7601"],
            60.0,
        )
        assert await asked(office, invited) == [(digest_of(parse_token(first.token).secret), "s4")]
        assert parse_token(first.token).pin == authority().pin
        second = await mount.ask(AddServer("s4"))
        assert second.token != first.token
        assert await asked(office, invited) == [(digest_of(parse_token(second.token).secret), "s4")]
        with pytest.raises(Refused, match="s2 is a member already, it is up"):
            await mount.ask(AddServer("s2"))
        for name, expires_s in (("no name", 60.0), ("s5", 0.0), ("s5", float("nan"))):
            with pytest.raises(Refused):
                await mount.ask(AddServer(name, expires_s))


async def test_adding_a_draining_server_takes_the_drain_back(url: str) -> None:
    async with small_network(url) as (office, mount):
        drain = await mount.ask(DrainServer("s2"))
        assert (await info(mount, "s2")).state == "draining"
        assert (await mount.ask(AddServer("s2"))).outcome == "undrained"
        assert await stored(office, "s2") == ("up", 0)
        assert office.state.members.places()[2].accepts

        (row,) = (await mount.ask(ListMigrations(drain.migration))).migrations
        assert row.state == "cancelled"
        again = await mount.ask(DrainServer("s2"))
        assert again.migration != drain.migration
        await mount.ask(ChangeMigration(again.migration, "cancel"))
        assert await stored(office, "s2") == ("up", 0)


# ---------------------------------------------------------------------------------------- copies that nobody would make


async def test_copies_that_wait_for_a_server_that_is_down_go_elsewhere(url: str) -> None:
    async with small_network(url) as (office, mount):
        clock = Clock(office)
        inodes = []
        for number in range(5):
            node = await mount.make(b"%d" % number)
            await mount.commit(node.ino, 1)
            inodes.append(node.ino)
        async with trio.open_nursery() as nursery:
            assert office.term is not None
            nursery.start_soon(requeue_loop, office.term)
            await clock.go_down("s2")

            async def moved() -> bool:
                pending = [(await where(mount, ino)).pending for ino in inodes]
                return all([task.server for task in found] == ["s3"] for found in pending)

            await until(moved)
            nursery.cancel_scope.cancel()


async def test_a_replica_that_was_forgotten_is_a_stray_though_its_number_was_given_out_lately(url: str) -> None:
    async with small_network(url) as (office, mount):
        ino, target = await copied_file(office, mount, b"f")
        agents = await agents_of(office)
        number, other = int(target[1:]), 5 - int(target[1:])
        unborn = await mount.new_ino()
        assert (await agents[target].ask(FindStrays(number, [ino, unborn]))).inodes == []
        assert (await agents[f"s{other}"].ask(FindStrays(other, [ino, unborn]))).inodes == [ino]
        assert (await agents["s1"].ask(FindStrays(1, [ino, unborn]))).inodes == []


# ----------------------------------------------------------------------------------------------------- certificates


async def epochs_of(office: Office, server: str) -> tuple[int, int] | None:
    """Its newest epoch and the least that is believed, as the catalog has them."""
    query = select(epochs.c.epoch, epochs.c.least).where(epochs.c.server == server)
    row = await asked(office, lambda connection: connection.execute(query).one_or_none())
    return None if row is None else (row.epoch, row.least)


async def invited_epoch(office: Office, server: str) -> int:
    query = select(invitations.c.epoch).where(invitations.c.server == server)
    epoch: int = await asked(office, lambda connection: connection.execute(query).scalar_one())
    return epoch


async def test_who_is_revoked_is_a_member_without_certificates(url: str) -> None:
    async with small_network(url) as (office, mount):
        assert office.term is not None
        agent = (await agents_of(office))["s3"]
        other = (await agents_of(office))["s2"]
        assert (await other.ask(Heartbeat())).revoked is None
        for _ in range(2):
            await mount.ask(RevokeServer("s3"))
            assert await epochs_of(office, "s3") == (1, 2)
        assert office.term.revoked == {"s3": 2}
        with pytest.raises(NotManager):
            await agent.ask(Heartbeat())
        # Told once.
        assert (await other.ask(Heartbeat())).revoked == {"s3": 2}
        assert (await other.ask(Heartbeat())).revoked is None
        assert (await (await office.peer("s2", "mount")).hello()).revoked == {"s3": 2}
        assert (await info(mount, "s3")).state in ("up", "suspect")
        added = await mount.ask(AddServer("s3"))
        assert (added.outcome, await invited_epoch(office, "s3")) == ("readmitted", 2)
        # Another token takes the first one back, and a revocation takes back both.
        await mount.ask(AddServer("s3"))
        await mount.ask(RevokeServer("s3"))
        count = select(func.count()).select_from(invitations)
        assert await asked(office, lambda connection: connection.execute(count).scalar_one()) == 0
    async with in_office(url, "s2") as office:
        assert (await (await office.peer("s1", "mount")).hello()).revoked == {"s3": 2}


async def test_new_certificates_can_be_revoked_as_the_first(url: str) -> None:
    async with small_network(url) as (office, mount):
        for epoch in (1, 2, 3):
            await mount.ask(RevokeServer("s3"))
            assert await epochs_of(office, "s3") == (epoch, epoch + 1)
            await mount.ask(AddServer("s3"))
            await office.store.write(partial(note_epoch, server="s3", epoch=await invited_epoch(office, "s3")))
            with pytest.raises(Refused, match="s3 is a member already"):
                await mount.ask(AddServer("s3"))


async def test_who_leaves_is_revoked_and_the_manager_cannot_be(url: str) -> None:
    async with small_network(url) as (office, mount):
        await mount.ask(RemoveServer("s3"))
        assert await epochs_of(office, "s3") == (1, 2)
        with pytest.raises(Refused, match="step-down first") as refused:
            await mount.ask(RevokeServer("s1"))
        assert refused.value.errno == errno.EBUSY
        with pytest.raises(Refused, match="s9"):
            await mount.ask(RevokeServer("s9"))
        assert await epochs_of(office, "s1") is None
        assert office.term is not None
        assert office.term.revoked == {"s3": 2}


async def test_a_server_does_not_make_its_own_certificates_void(url: str) -> None:
    """Its command's connection would end before the answer."""
    async with small_network(url) as (office, _):
        person = await office.peer("s3", "admin")
        requests: list[Request[Any]] = [RemoveServer("s3"), RevokeServer("s3"), LoseServer("s3", force=True)]
        for request in requests:
            with pytest.raises(Refused, match="type it on another server") as refusal:
                await person.ask(request)
            assert refusal.value.errno == errno.EBUSY
        assert (await person.ask(GetServer("s3"))).info.state == "up"
