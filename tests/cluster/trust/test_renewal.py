"""A process gets its next certificate in time, for a new key, and for nobody but itself; what fails changes nothing."""

import time
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.copying.peers import PeerChannels
from cluster.decoding import from_msgpack
from cluster.errors import Refused, Unavailable
from cluster.messages import MANAGER_UNION, AskAuthority, Certified, Done, RenewCertificate, ShowCertificate
from cluster.rpc.connection import connect
from cluster.rpc.renewal import LATER_MAX_S, LOOK_S, Upkeep, renew, renewal_loop
from cluster.rpc.serving import listen
from cluster.rpc.wire import A_MANAGER, AgentAt
from cluster.trust.authority import Authority, new_key, request_for
from cluster.trust.believed import listing
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import BACKDATED_S, Identity, Role, lasting, missed_from, renewed_from
from cluster.trust.issue import issue
from tests.agent.network import free_address
from tests.cli.test_admission import Candidate
from tests.support.clocks import movable_clock
from tests.support.trust import authority, credentials

DAY_S = 86400.0


def signs(identity: Identity, by: Authority | None = None, valid_s: float = 365 * DAY_S) -> "Signer":
    return Signer(identity, by or authority(), valid_s)


class Signer:
    """A manager."""

    def __init__(self, identity: Identity, by: Authority, valid_s: float) -> None:
        self.identity, self.by, self.valid_s = identity, by, valid_s
        self.asked = 0

    async def __call__(self, request: RenewCertificate) -> Certified:
        self.asked += 1
        return Certified(self.by.sign(request.request, self.identity, self.valid_s), self.by.pem)


async def shown(_request: ShowCertificate) -> Done:
    return Done()


def made(tmp_path: Path, valid_s: float) -> Credentials:
    folder = TrustFolder(tmp_path / "trust")
    issue(folder, authority(), "test", "s1", valid_s=valid_s)
    return Credentials(folder, Role.AGENT)


async def test_it_is_renewed_when_two_thirds_are_over(tmp_path: Path) -> None:
    mine = made(tmp_path, 6.0)
    before, key = mine.ends_s, mine.folder.read_key(Role.AGENT)
    assert before - 3 < mine.renewed_from_s < before - 1
    signer = signs(mine.identity, valid_s=1000.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(renewal_loop, mine, signer, shown)
        await trio.sleep(max(0.0, mine.renewed_from_s - time.time() - 0.5))
        assert signer.asked == 0
        with trio.fail_after(5):
            while mine.generation == 1:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert time.time() < before
    assert (signer.asked, mine.identity) == (1, Identity("test", "s1", Role.AGENT, 1))
    assert mine.ends_s > before + 900
    after = mine.folder.read_key(Role.AGENT)
    assert after is not None
    assert key is not None
    assert after.private_numbers() != key.private_numbers()
    assert Credentials(mine.folder, Role.AGENT).ends_s == mine.ends_s


async def test_a_manager_that_is_away_is_asked_again(tmp_path: Path) -> None:
    mine = made(tmp_path, 3.0)
    signer = signs(mine.identity)
    failures: list[float] = []

    async def ask(request: RenewCertificate) -> Certified:
        if len(failures) < 2:
            failures.append(time.time())
            raise Unavailable("nobody is in office")
        return await signer(request)

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renewal_loop, mine, ask, shown)
            while mine.generation == 1:
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
    assert (len(failures), mine.generation) == (2, 2)


@pytest.mark.parametrize(
    "identity",
    [
        Identity("test", "s2", Role.AGENT, 1),
        Identity("test", "s1", Role.MANAGER, 1),
        Identity("test", "s1", Role.AGENT, 2),
        Identity("other", "s1", Role.AGENT, 1),
    ],
)
async def test_another_certificate_than_its_own_is_not_taken(tmp_path: Path, identity: Identity) -> None:
    mine = made(tmp_path, DAY_S)
    path = mine.folder.credential(Role.AGENT)
    before = path.read_bytes()
    with pytest.raises(Refused, match="has answered with a certificate"):
        await renew(mine, signs(identity))

    async def another_key(_request: RenewCertificate) -> Certified:
        return await signs(mine.identity)(RenewCertificate(request_for(new_key())))

    with pytest.raises(Refused, match="has answered with a certificate"):
        await renew(mine, another_key)
    assert (path.read_bytes(), mine.generation) == (before, 1)


async def test_another_authority_is_believed_before_its_certificate_is_shown(tmp_path: Path) -> None:
    mine = made(tmp_path, DAY_S)
    other = Authority.make("test", 2)
    await renew(mine, signs(mine.identity, other))
    assert mine.authorities == other.pem


async def test_connections_are_replaced_when_either_end_has_another_certificate(tmp_path: Path) -> None:
    mine = made(tmp_path, DAY_S)
    address = free_address()
    async with trio.open_nursery() as nursery:
        make = Candidate(authority().pem).to
        await nursery.start(partial(listen, address, from_msgpack(MANAGER_UNION), make, credentials("s2", "agent")))
        peers, agent = PeerChannels(nursery, mine), AgentAt("s2", address)
        first = await peers.shared(agent)
        assert await peers.shared(agent) is first
        await renew(mine, signs(mine.identity))
        second = await peers.shared(agent)
        # What was asked over it is answered; then it ends.
        assert first is not second
        assert first.broken.is_set()
        assert not second.is_stale
        await second.call(AskAuthority(), timeout_s=5)
        nursery.cancel_scope.cancel()


async def test_a_connection_ends_with_the_last_of_its_calls(tmp_path: Path) -> None:
    mine = made(tmp_path, DAY_S)
    address, answer = free_address(), trio.Event()

    class Slow(Candidate):
        def at_once(self, _request: object) -> None:
            return None

        async def handle(self, _request: object, _body: bytes, _send: object) -> object:
            await answer.wait()
            return Certified(b"", b"")

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(listen, address, from_msgpack(MANAGER_UNION), Slow(b"").to, credentials("s2", "manager")))
        channel = await connect(address, nursery, mine, A_MANAGER, timeout_s=5)
        async with trio.open_nursery() as calls:
            for _ in range(2):
                calls.start_soon(partial(channel.call, RenewCertificate(b""), timeout_s=5))
            await trio.testing.wait_all_tasks_blocked(0.05)
            channel.retire()
            assert not channel.broken.is_set()
            answer.set()
        assert channel.broken.is_set()
        nursery.cancel_scope.cancel()


def test_when_a_certificate_is_renewed_and_missed() -> None:
    now = time.time()
    for life_s, renewed_s, missed_s in ((360 * DAY_S, 240 * DAY_S, 300 * DAY_S), (60.0, 40.0, 45.0)):
        assert renewed_from(now, now + life_s) == pytest.approx(now + renewed_s)
        assert missed_from(now, now + life_s) == pytest.approx(now + missed_s)
    # Of one that was not renewed: ever more often, and in time.
    text = "%b %d %H:%M:%S %Y GMT"
    start = float(int(now))
    shown = {
        "notBefore": time.strftime(text, time.gmtime(start - BACKDATED_S)),
        "notAfter": time.strftime(text, time.gmtime(start + 100)),
    }
    assert lasting(shown, start) == pytest.approx((start + 100, start + 75, start + 75))
    assert lasting(shown, start + 80) == pytest.approx((start + 100, start + 90, start + 75))


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """For tests that ask for it."""
    return movable_clock()


async def test_an_agent_does_what_a_process_has_not_done_and_nothing_else(tmp_path: Path, clock: trio.testing.MockClock) -> None:
    mine = made(tmp_path, DAY_S)
    told: list[ShowCertificate] = []

    async def show(request: ShowCertificate) -> Done:
        told.append(request)
        return Done()

    second = Authority.make("test", 2)
    signer = signs(mine.identity, second)
    listed = listing(1, [second.pem, authority().pem])

    async def ask(request: RenewCertificate) -> Certified:
        return Certified((await signer(request)).certificate, listed)

    agents, its_own = Upkeep(mine, ask, show, later=True), Upkeep(mine, ask, show)
    for upkeep, count in ((agents, 0), (its_own, 0)):
        await upkeep.look()
        assert len(told) == count
    clock.jump(LOOK_S)
    await its_own.look()
    await agents.look()
    assert told == [ShowCertificate(0)]
    clock.jump(LATER_MAX_S)
    await agents.look()
    assert told == [ShowCertificate(0)] * 2

    # Another authority signs: its process has done all before the agent would.
    mine.folder.write_authorities(listed)
    await agents.look()
    clock.jump(LATER_MAX_S / 2)
    await agents.look()
    assert (signer.asked, mine.is_superseded) == (0, True)
    await its_own.look()
    assert (signer.asked, mine.authority, told[2:]) == (1, 2, [ShowCertificate(1)])
    await agents.look()
    clock.jump(LATER_MAX_S / 2)
    await agents.look()
    assert (signer.asked, len(told)) == (1, 3)

    # And nobody has: its process does not run.
    third = Authority.make("test", 3)
    signer.by, listed = third, listing(2, [third.pem, second.pem])
    mine.folder.write_authorities(listed)
    await agents.look()
    clock.jump(LATER_MAX_S)
    await agents.look()
    assert (signer.asked, mine.authority, told[3:]) == (2, 3, [ShowCertificate(2)])


async def test_what_could_not_be_shown_is_shown_again(tmp_path: Path, clock: trio.testing.MockClock) -> None:
    mine = made(tmp_path, DAY_S)
    attempts = 0

    async def show(_request: ShowCertificate) -> Done:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise Unavailable("nobody is in office")
        return Done()

    upkeep = Upkeep(mine, signs(mine.identity), show)
    for _ in range(20):
        clock.jump(LOOK_S)
        await upkeep.look()
    assert attempts == 3
