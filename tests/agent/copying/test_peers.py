"""What a pull takes from a peer, and what it does about one that cannot be reached or makes no sense."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from agent.copying.peers import STALL_S, PeerChannels, SmallPulls, pull_bulk
from agent.copying.pulls import SmallObject
from cluster.decoding import Decode, from_msgpack
from cluster.errors import Fenced, GodwitError, NotManager, ProtocolError, Refused, Unavailable
from cluster.messages import (
    AGENT_UNION,
    PULLED_MAX_BYTES,
    PULLS_MAX,
    Chunk,
    Done,
    Failure,
    Hole,
    Pulled,
    PullEnd,
    PullHeader,
    PullObject,
    Stamp,
)
from cluster.rpc.bulk import BulkConnection
from cluster.rpc.connection import Answer, Channel, connect
from cluster.rpc.serving import Handler, SendReply, listen
from cluster.rpc.wire import ANYBODY, AgentAt, connect_wire
from tests.agent.network import TIMEOUT_S, free_address
from tests.support.trust import credentials

pytestmark = pytest.mark.deadline(60)

REQUEST = PullObject(7, 1, 1, Stamp(10, 0, 0), b"")
END = PullEnd(b"digest")

Script = list[tuple[Any, bytes] | GodwitError]


class Source(Handler):
    """Answers a pull with what its script says."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def at_once(self, request: Any) -> None:
        del request

    async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
        del request, body
        for step in self._script:
            if isinstance(step, GodwitError):
                raise step
            await send(*step)
        await trio.sleep_forever()

    def closed(self) -> None:
        return


@asynccontextmanager
async def channel_to(script: "Script | Source") -> AsyncIterator[Channel]:
    source = script if isinstance(script, Source) else Source(script)
    address = free_address()
    decoder: Decode[Any] = from_msgpack(AGENT_UNION)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: listen(
                address, decoder, lambda _peer: source, credentials("s1", "agent"), task_status=task_status
            )
        )
        yield await connect(address, nursery, credentials("s9", "agent"), ANYBODY, timeout_s=TIMEOUT_S)
        nursery.cancel_scope.cancel()


HEADER: tuple[Any, bytes] = (PullHeader(10), b"")

NONSENSE: list[Script] = [
    [(PullHeader(11), b"")],
    [(PullHeader(-1), b"")],
    [(Chunk(), b"x")],
    [(Done(), b"")],
    [HEADER, (END, b"")],
    [HEADER, (Chunk(), b"")],
    [HEADER, (Chunk(), b"x" * 11)],
    [HEADER, (Chunk(), b"x" * 10), (Chunk(), b"x")],
    [HEADER, HEADER],
    [HEADER, (Chunk(), b"x" * 9), (END, b"")],
    [HEADER, (Hole(10), b""), (END, b"")],  # where none are taken
]
NONSENSE_WITH_HOLES: list[Script] = [
    *NONSENSE[:-1],
    [HEADER, (Hole(11), b""), (END, b"")],
    [HEADER, (Hole(10), b"x" * 10), (END, b"")],
    [HEADER, (Hole(0), b""), (Chunk(), b"x" * 10), (END, b"")],
    [HEADER, (Hole(-1), b""), (Chunk(), b"x" * 10), (END, b"")],
    [HEADER, (Hole(6), b""), (Chunk(), b"x" * 5), (END, b"")],
    [HEADER, (Hole(9), b""), (END, b"")],
    [(Hole(10), b""), (END, b"")],
]


NO = Failure("refused", 2, "no")
NONSENSE_OF_MANY: list[tuple[Any, bytes]] = [
    (Done(), b""),
    (PullHeader(10), b""),
    (Pulled([]), b""),
    (Pulled([END]), b"x" * 9),
    (Pulled([END]), b"x" * 11),
    (Pulled([END, END]), b"x" * 10),
    (Pulled([NO]), b"x" * 10),
]


async def received_small(script: Script, stall_s: float = STALL_S) -> SmallObject:
    async with channel_to(script) as channel, trio.open_nursery() as nursery:
        try:
            return await SmallPulls(PeerChannels(nursery, credentials("s9", "agent")), nursery, stall_s=stall_s).pull(
                AgentAt("s1", channel.peer), REQUEST
            )
        finally:
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", NONSENSE_OF_MANY, ids=range(len(NONSENSE_OF_MANY)))
async def test_nonsense_closes_the_connection(answer: tuple[Any, bytes]) -> None:
    async with channel_to([answer]) as source, trio.open_nursery() as nursery:
        channels = PeerChannels(nursery, credentials("s9", "agent"))
        channel = await channels.shared(AgentAt("s1", source.peer))
        with pytest.raises(ProtocolError):
            await SmallPulls(channels, nursery).pull(AgentAt("s1", source.peer), REQUEST)
        assert channel.broken.is_set()
        nursery.cancel_scope.cancel()


async def test_what_is_wanted_meanwhile_is_asked_for_together_as_far_as_it_fits() -> None:
    sizes = [PULLED_MAX_BYTES // 4] * 5 + [1] * (2 * PULLS_MAX) + [0, PULLED_MAX_BYTES]
    asked: list[list[int]] = []

    class Counting(Source):
        async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
            del body, send
            asked.append([pull.ino for pull in request.pulls])
            results = [NO if pull.ino == 6 else PullEnd(b"%d" % pull.ino) for pull in request.pulls]
            content = b"".join(bytes([pull.ino % 256]) * pull.stamp.size for pull in request.pulls if pull.ino != 6)
            return Answer(Pulled(results), content)

    async with channel_to(Counting([])) as source, trio.open_nursery() as nursery:
        small = SmallPulls(PeerChannels(nursery, credentials("s9", "agent")), nursery)
        got: dict[int, SmallObject | GodwitError] = {}

        async def pull(ino: int, size: int) -> None:
            try:
                got[ino] = await small.pull(AgentAt("s1", source.peer), PullObject(ino, 1, 1, Stamp(size, 0, 0), b""))
            except GodwitError as error:
                got[ino] = error

        async with trio.open_nursery() as pulls:
            for ino, size in enumerate(sizes):
                pulls.start_soon(pull, ino, size)
        nursery.cancel_scope.cancel()
    assert isinstance(got.pop(6), Refused)
    assert got == {ino: SmallObject(bytes([ino % 256]) * size, b"%d" % ino) for ino, size in enumerate(sizes) if ino != 6}
    assert sorted(ino for inodes in asked for ino in inodes) == list(range(len(sizes)))
    assert all(len(inodes) <= PULLS_MAX and sum(sizes[ino] for ino in inodes) <= PULLED_MAX_BYTES for inodes in asked)
    assert len(asked) < 8


async def test_what_a_disk_does_not_give_holds_up_nothing_else() -> None:
    class Stalling(Source):
        async def handle(self, request: Any, body: bytes, send: SendReply) -> Any:
            del body, send
            if any(pull.ino == 6 for pull in request.pulls):
                await trio.sleep_forever()
            return Answer(Pulled([PullEnd(b"%d" % pull.ino) for pull in request.pulls]), b"x" * len(request.pulls))

    async with channel_to(Stalling([])) as source, trio.open_nursery() as nursery:
        # What a busy machine needs for an answer is less.
        small = SmallPulls(PeerChannels(nursery, credentials("s9", "agent")), nursery, stall_s=2.0)
        got: list[int] = []

        async def pull(ino: int) -> None:
            try:
                await small.pull(AgentAt("s1", source.peer), PullObject(ino, 1, 1, Stamp(1, 0, 0), b""))
            except Unavailable:
                assert ino == 6
            else:
                got.append(ino)

        async with trio.open_nursery() as pulls:
            for ino in range(PULLS_MAX + 10):
                pulls.start_soon(pull, ino)
        nursery.cancel_scope.cancel()
    assert sorted(got) == [ino for ino in range(PULLS_MAX + 10) if ino != 6]


async def received_in_bulk(script: Script, stall_s: float = STALL_S, *, takes_holes: bool = False) -> bytes:
    content = b""

    def skip(length: int) -> None:
        nonlocal content
        content += b"-" * length

    def take(data: memoryview) -> None:
        nonlocal content
        content += data
        assert len(content) <= 10

    async with channel_to(script) as channel:
        wire = await connect_wire(channel.peer, credentials("s9", "agent"), ANYBODY, timeout_s=TIMEOUT_S)
        try:
            holes = skip if takes_holes else None
            assert await pull_bulk(BulkConnection(wire), REQUEST, 10, take, trio.CapacityLimiter(1), stall_s, holes) == END
        finally:
            wire.close()
    return content


@pytest.mark.parametrize("script", NONSENSE, ids=range(len(NONSENSE)))
async def test_nonsense_is_refused_in_bulk_too(script: Script) -> None:
    with pytest.raises(BaseExceptionGroup) as problem:
        await received_in_bulk(script)
    assert problem.group_contains(ProtocolError)


@pytest.mark.parametrize("script", NONSENSE_WITH_HOLES, ids=range(len(NONSENSE_WITH_HOLES)))
async def test_nonsense_with_holes_is_refused(script: Script) -> None:
    with pytest.raises(BaseExceptionGroup) as problem:
        await received_in_bulk(script, takes_holes=True)
    assert problem.group_contains(ProtocolError)


async def test_holes_are_taken_where_they_are() -> None:
    script: Script = [HEADER, (Hole(2), b""), (Chunk(), b"abc"), (Hole(4), b""), (Hole(1), b""), (END, b"")]
    assert await received_in_bulk(script, takes_holes=True) == b"--abc-----"


async def test_exactly_the_announced_bytes_are_taken() -> None:
    assert await received_small([(Pulled([END]), b"abcdefghij")]) == SmallObject(b"abcdefghij", END.checksum)
    assert await received_in_bulk([HEADER, (Chunk(), b"abcd"), (Chunk(), b"efghij"), (END, b"")]) == b"abcdefghij"


@pytest.mark.parametrize("receive", [received_small, received_in_bulk])
@pytest.mark.parametrize("error", [Fenced("no"), NotManager("no"), Unavailable("no")])
async def test_no_answer_of_a_peer_ends_this_agent(error: GodwitError, receive: Callable[[Script], Awaitable[Any]]) -> None:
    with pytest.raises(BaseExceptionGroup) as problem:
        await receive([error])
    assert problem.group_contains(Unavailable)
    assert not problem.group_contains((Fenced, NotManager))


@pytest.mark.parametrize("kind", [Fenced.kind, NotManager.kind])
async def test_nor_does_what_is_said_of_one_object(kind: str) -> None:
    with pytest.raises(BaseExceptionGroup) as problem:
        await received_small([(Pulled([Failure(kind, 5, "no")]), b"")])
    assert problem.group_contains(Unavailable)
    assert not problem.group_contains((Fenced, NotManager))


@pytest.mark.parametrize(
    ("receive", "script"), [(received_small, []), (received_in_bulk, [HEADER, (Chunk(), b"abcd")])], ids=["small", "bulk"]
)
async def test_a_silent_source_is_given_up(receive: Callable[[Script, float], Awaitable[Any]], script: Script) -> None:
    with pytest.raises(BaseExceptionGroup) as problem:
        await receive(script, 0.05)
    assert problem.group_contains(Unavailable, match="sent nothing|did not answer")


async def test_one_failed_connection_speaks_for_many() -> None:
    address = free_address()
    async with trio.open_nursery() as nursery:
        channels = PeerChannels(nursery, credentials("s9", "agent"))
        messages = set()
        for _ in range(50):
            with pytest.raises(Unavailable) as problem:
                await channels.shared(AgentAt("s1", address))
            messages.add(str(problem.value))
        assert len(messages) == 1
        decoder: Decode[Any] = from_msgpack(AGENT_UNION)
        await nursery.start(
            lambda task_status: listen(
                address, decoder, lambda _peer: Source([]), credentials("s1", "agent"), task_status=task_status
            )
        )
        channel = None
        while channel is None:
            try:
                channel = await channels.shared(AgentAt("s1", address))
            except Unavailable:
                await trio.sleep(0.02)
        assert await channels.shared(AgentAt("s1", address)) is channel
        channel.close()
        assert await channels.shared(AgentAt("s1", address)) is not channel
        nursery.cancel_scope.cancel()


async def test_the_agent_of_another_server_at_the_address_is_not_asked() -> None:
    async with channel_to([]) as channel, trio.open_nursery() as nursery:
        channels = PeerChannels(nursery, credentials("s9", "agent"))
        for connect_to in (channels.shared, partial(_own, channels)):
            with pytest.raises(Unavailable, match="it is the agent of s1, not the agent of s2"):
                await connect_to(AgentAt("s2", channel.peer))
        nursery.cancel_scope.cancel()


async def _own(channels: PeerChannels, agent: AgentAt) -> None:
    async with channels.own(agent):
        raise AssertionError("it was connected to")
