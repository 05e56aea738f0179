"""What peers may take of a process, and what becomes of errors that nobody had thought of."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from cluster.decoding import Decode, from_msgpack
from cluster.errors import Fenced, ProtocolError, Refused, Unavailable, from_failure
from cluster.faults import Faults
from cluster.messages import AGENT_UNION, StatObject, SyncObject, WriteObject
from cluster.rpc import bounds
from cluster.rpc.bounds import PATIENCE, REST, SLICE_S, STRANGERS_PER_ADDRESS, Door, Patience, Room, Visit
from cluster.rpc.connection import connect
from cluster.rpc.frames import BODY_MAX_BYTES, HEADER, PREFACE, pack
from cluster.rpc.serving import Handler, SendReply, listen
from cluster.rpc.wire import ANYBODY
from cluster.tending import TendedTasks, tended
from cluster.trust.credentials import Newcomer
from tests.cluster.test_rpc import STAT, free_address
from tests.support.trust import authority, credentials, raw

pytestmark = pytest.mark.deadline(30)


class Service(Handler):
    """Answers StatObject at once, WriteObject never, and SyncObject with what nobody asked for."""

    def __init__(self) -> None:
        self.waiting = 0

    def at_once(self, request: Any) -> Any:
        return STAT if isinstance(request, StatObject) else None

    async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
        if isinstance(request, SyncObject):
            return STAT
        self.waiting += 1
        await trio.sleep_forever()
        raise AssertionError

    def closed(self) -> None:
        return


@asynccontextmanager
async def served(
    service: Service | None = None, patience: Patience = PATIENCE
) -> AsyncIterator[tuple[Service, str, trio.Nursery]]:
    service, address = service or Service(), free_address()
    decode: Decode[Any] = from_msgpack(AGENT_UNION)
    async with trio.open_nursery() as nursery:
        serving = partial(listen, address, decode, lambda _peer: service, credentials("s1", "agent"), patience=patience)
        await nursery.start(lambda task_status: serving(task_status=task_status))
        yield service, address, nursery
        nursery.cancel_scope.cancel()


async def test_a_stranger_may_send_little_and_who_greets_more() -> None:
    async with served() as (service, address, nursery):
        stranger = await connect(address, nursery, Newcomer(authority().pem.decode()), ANYBODY, timeout_s=5)
        with pytest.raises(Unavailable):
            await stranger.call(WriteObject(1, 1, b"", 0), body=bytes(70_000), timeout_s=5)
        known = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=5)
        nursery.start_soon(partial(known.call, WriteObject(1, 1, b"", 0), body=bytes(BODY_MAX_BYTES), timeout_s=60))
        while service.waiting == 0:
            await trio.sleep(0.01)


async def test_who_has_proved_who_he_is_is_no_stranger() -> None:
    """He may send more at once, and be silent for as long as he likes."""
    patience = Patience(stranger_s=0.3)

    class Answering(Service):
        async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
            await trio.sleep(0.01)
            return STAT

    async def test(silent_s: float) -> None:
        async with served(Answering(), patience) as (_service, address, _nursery):
            stream = await raw(address, credentials("s9", "mount"))
            await stream.send_all(PREFACE + pack(1, msgspec.msgpack.encode(SyncObject(1, 1, b""))))
            assert await stream.receive_some(1000)
            await trio.sleep(silent_s)
            await stream.send_all(pack(2, msgspec.msgpack.encode(WriteObject(1, 1, b"", 0)), bytes(100_000)))
            assert await stream.receive_some(1000), "it is answered"
            await stream.aclose()

    await test(0.0)
    await test(2 * patience.stranger_s)


async def test_requests_that_wait_hold_a_bounded_number_of_bytes() -> None:
    async with served() as (service, address, nursery):
        stream = await raw(address, credentials("s9", "mount"))
        write = msgspec.msgpack.encode(WriteObject(1, 1, b"", 0))
        with trio.move_on_after(1.5):
            await stream.send_all(PREFACE)
            for number in range(1, 41):
                await stream.send_all(pack(number, write, bytes(BODY_MAX_BYTES)))
        assert 1 <= service.waiting <= bounds.PER_CONNECTION_BYTES // BODY_MAX_BYTES
        other = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=5)
        assert await other.call(StatObject(1, 1, b""), timeout_s=5) == STAT
        await stream.aclose()


async def test_many_questions_in_one_segment_let_others_run() -> None:
    async with served() as (_service, address, _nursery):
        stream = await raw(address, credentials("s9", "mount"))
        questions = b"".join(pack(n, b"\x94\xaastatobject\x01\x01\xc4\x00") for n in range(1, 20_001))
        longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                before = trio.current_time()
                await trio.sleep(0)
                longest = max(longest, trio.current_time() - before)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(stream.send_all, PREFACE + questions)
            received = 0
            while received < 20_000 * (HEADER.size + 10):
                received += len(await stream.receive_some(1 << 20))
            nursery.cancel_scope.cancel()
        assert longest < 0.15  # answered in one go they take half a second


async def test_a_reply_to_something_else_closes_the_connection() -> None:
    async with served() as (_service, address, nursery):
        channel = await connect(address, nursery, credentials("s9", "mount"), ANYBODY, timeout_s=5)
        with pytest.raises(ProtocolError, match="SyncObject with ObjectStat"):
            await channel.call(SyncObject(1, 1, b""), timeout_s=5)
        assert channel.broken.is_set()


def test_there_are_few_strangers_from_one_address() -> None:
    door = Door()
    visits = [door.enter("a") for _ in range(STRANGERS_PER_ADDRESS)]
    with pytest.raises(ProtocolError, match="too many"):
        door.enter("a")
    door.enter("b")
    visits[0].introduced()
    visits[0].introduced()
    visits.append(door.enter("a"))
    for visit in visits:
        visit.left()
    assert len([door.enter("a") for _ in range(STRANGERS_PER_ADDRESS)]) == STRANGERS_PER_ADDRESS


@pytest.mark.usefixtures("autojump_clock")
async def test_guests_rest_from_what_all_of_their_address_used() -> None:
    door = Door()
    guest, same, elsewhere, member = door.enter("a"), door.enter("a"), door.enter("b"), door.enter("a")
    member.is_guest = False

    async def time_of(visit: Visit) -> float:
        began_s = trio.current_time()
        if visit.must_give_way:
            await visit.give_way()
        return trio.current_time() - began_s

    guest.used(SLICE_S)
    assert not guest.must_give_way, "a question now and then is answered at once"
    same.used(SLICE_S)
    assert await time_of(elsewhere) == 0.0
    assert await time_of(member) == 0.0
    assert await time_of(guest) == pytest.approx(2 * SLICE_S * REST)
    assert await time_of(same) == 0.0, "it was paid for"
    member.used(10 * SLICE_S)
    assert await time_of(member) == 0.0
    assert await time_of(same) == 0.0


async def test_room_is_found_within_all_others() -> None:
    outer = Room(100)
    one, other = Room(80, outer), Room(80, outer)
    await one.take(70)
    assert not one.has(20)
    assert other.has(30)
    assert not other.has(40)
    with trio.move_on_after(0.01) as scope:
        await other.take(40)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.take, 40)
        await trio.testing.wait_all_tasks_blocked()
        one.give(70)
    assert (one.held, other.held, outer.held) == (0, 40, 40)
    await one.take(60)


def test_what_fails_begins_anew_and_is_logged_at_powers_of_ten(caplog: pytest.LogCaptureFixture) -> None:
    turns = 0

    async def work() -> None:
        nonlocal turns
        turns += 1
        if turns <= 25:
            raise RuntimeError("a bug")
        raise Fenced("somebody else does it")

    with pytest.raises(Fenced), caplog.at_level(logging.ERROR):
        trio.run(partial(tended, work, pause_s=0.0))
    assert turns == 26
    assert len([record for record in caplog.records if "unexpected error" in record.message]) == 2


async def test_a_task_that_fails_ends_no_other() -> None:
    async def fails() -> None:
        raise RuntimeError("a bug")

    done = trio.Event()

    async def goes_on() -> None:
        done.set()

    async with trio.open_nursery() as nursery:
        tasks = TendedTasks(nursery)
        tasks.start_soon(fails)
        tasks.start_soon(goes_on)
    assert done.is_set()


def test_tracebacks_are_logged_where_they_are_counted() -> None:
    """Besides there, only of the error that ends a process."""
    tree = Path(__file__).parents[2]
    files = [path for part in ("cluster", "fusefs", "manager", "agent", "cli", "lab") for path in (tree / part).rglob("*.py")]
    found = {str(path.relative_to(tree)) for path in files if re.search(r"log\.exception\(|exc_info=", path.read_text())}
    assert found == {"cluster/faults.py", "cli/commands/run.py"}


def test_causes_are_counted_and_few() -> None:
    counted = Faults()
    for number in range(5000):
        counted.note(logging.getLogger("nobody"), f"cause {number}", "it", level=logging.DEBUG)
    assert len(counted.counts) <= 1001
    assert counted.counts.total() == 5000
    assert not counted.problems("mount")


@pytest.mark.parametrize("number", [0, -5, 2**40, 10_000])
def test_an_errno_that_is_none_becomes_the_kinds_own(number: int) -> None:
    assert from_failure("refused", number, "x" * 5000).errno == Refused.default_errno
    assert len(str(from_failure("refused", number, "x" * 5000))) == 1000
