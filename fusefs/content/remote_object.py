"""Objects of other servers, through their agents."""

import errno
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from cluster.errors import Fenced, TokenRefused, Unavailable, Undone, refused
from cluster.messages import (
    AllocateObject,
    CommitObject,
    Content,
    CopyObject,
    ExamineObject,
    Node,
    ReadObject,
    Request,
    SeekObject,
    SetAttr,
    SetObjectTimes,
    Stamp,
    StatObject,
    SyncObject,
    TruncateObject,
    WriteObject,
)
from cluster.rpc.connection import Answer
from cluster.volume.extents import is_repeatable
from fusefs.caching.tokens import Held, Leases, Pass
from fusefs.content.objects import Object
from fusefs.content.peers import Peers

R = TypeVar("R")

RETRY_S = 0.25  # between two attempts: an agent may be starting
_NO_CONTENT = (StatObject, SyncObject, CommitObject, SetObjectTimes, ExamineObject)  # neither read nor write it


class RemoteObject:
    """The object at its home on another server, or a replica there when `stamp` is given (then for reading only).

    Every request carries a good lease token; for a replica a pass, since its agent takes no token that is for the home's agent.
    Requests that may be repeated are repeated until the deadline when the connection breaks; an append only if it was certainly
    not done. The deadline is put off while the agent says that its disk works, as of one of this server
    (`fusefs.content.disk_threads`). Raises `Fenced` when the home has moved on.
    """

    is_remote = True
    is_fenced = False  # the agent there lifts the fence for a good token

    def __init__(
        self, peers: Peers, leases: Leases, node: Node, *, volume: int, stamp: Stamp | None = None, timeout_s: float
    ) -> None:
        self._peers = peers
        self._leases = leases
        self._ino = node.ino
        self._volume = volume
        self._epoch = node.home_epoch  # under which the volume was the home: with another token, it is Fenced
        self._stamp = stamp  # of the replica that is meant; None: of the home, whatever it has
        self._timeout_s = timeout_s
        self._worked_s = float("-inf")  # when the agent last said that it is at work

    async def read(self, offset: int, length: int) -> bytes:
        if self._stamp is not None:
            return await self.read_once(offset, length)
        return await self._persist(lambda: self.read_once(offset, length))

    async def read_once(self, offset: int, length: int) -> bytes:
        """As `read`, but gives up when the server cannot be reached at the first attempt."""
        answer = await self._exchange(lambda token: ReadObject(self._ino, self._volume, token, offset, length, self._stamp))
        return answer.body

    async def write(self, offset: int, data: bytes, *, append: bool) -> int:
        async def attempt() -> int:
            answer = await self._exchange(
                lambda token: WriteObject(self._ino, self._volume, token, offset, append), body=data, once=append
            )
            count: int = answer.reply.count
            return count

        return await self._persist(attempt, repeatable=not append)

    async def truncate(self, size: int) -> None:
        await self._persist(lambda: self._ask(lambda token: TruncateObject(self._ino, self._volume, token, size)))

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        once = not is_repeatable(mode)

        async def attempt() -> None:
            await self._exchange(lambda token: AllocateObject(self._ino, self._volume, token, mode, offset, length), once=once)

        await self._persist(attempt, repeatable=not once)

    async def seek(self, offset: int, whence: int) -> int | None:
        return await self._persist(lambda: self.seek_once(offset, whence))

    async def seek_once(self, offset: int, whence: int) -> int | None:
        """As `seek`, but gives up when the server cannot be reached at the first attempt."""
        return (await self._ask(lambda token: SeekObject(self._ino, self._volume, token, offset, whence))).offset

    async def copy_from(self, source: Object, start: int, offset: int, length: int) -> int:
        if not isinstance(source, RemoteObject) or not await self._peers.same_server(self._volume, source._volume):
            raise refused(errno.EXDEV)

        async def attempt() -> int:
            read = await source.reading(start, length)
            return (await self._ask(lambda token: CopyObject(self._ino, self._volume, token, offset, read))).count

        return await self._persist(attempt)

    async def reading(self, offset: int, length: int) -> ReadObject:
        """The request with which the agent there may be asked for these bytes. Refused with EXDEV if the home has moved."""
        try:
            held = await self._current_token()
        except Fenced as error:
            raise refused(errno.EXDEV, str(error)) from error
        return ReadObject(self._ino, self._volume, held.sealed, offset, length, self._stamp)

    async def sync(self, *, data_only: bool) -> None:  # noqa: ARG002 - the agent always syncs both
        await self._persist(lambda: self._ask(lambda token: SyncObject(self._ino, self._volume, token)))

    async def stat(self) -> Content:
        return (await self._ask(lambda token: StatObject(self._ino, self._volume, token))).content

    async def reach(self) -> None:
        """Returns when the home answers; raises `Unavailable` at the deadline."""
        await self._persist(self.stat)

    async def examine(self, *, patient: bool = False) -> None:
        """Has its server find out whether the object has the committed content. Raises `Corrupt` if not, or `Unavailable`: if
        *patient*, at the deadline."""

        async def ask() -> None:
            await self._ask(lambda token: ExamineObject(self._ino, self._volume, token))

        await (self._persist(ask) if patient else ask())

    async def commit(self, node: Node, path: bytes, *, final: bool) -> Node:  # noqa: ARG002 - the agent asks for the node
        return await self._persist(lambda: self._ask(lambda token: CommitObject(self._ino, self._volume, token, final)))

    async def set_times(self, change: SetAttr) -> Node:
        times = change.atime_ns, change.mtime_ns
        return await self._persist(lambda: self._ask(lambda token: SetObjectTimes(self._ino, self._volume, token, *times)))

    def close(self) -> None:
        """Nothing is held."""

    async def _ask(self, make: Callable[[bytes], Request[R]]) -> R:
        reply: R = (await self._exchange(make)).reply
        return reply

    async def _exchange(self, make: Callable[[bytes], Request[Any]], body: bytes = b"", *, once: bool = False) -> Answer:
        """One exchange with a token that the agent takes: it may not have heard of a new manager as soon as this mount."""
        deadline = trio.current_time() + self._timeout_s
        held = await self._current_token()
        pause_s = 0.0
        while True:
            request = make(held.sealed)
            # Not before: a lock may have been lost while the lease was waited for.
            if not isinstance(request, _NO_CONTENT):
                self._leases.check_content(self._ino)
            try:
                return await self._peers.exchange(self._volume, request, body=body, once=once, works=self._works)
            except TokenRefused as error:
                if self._is_over(deadline, pause_s):
                    raise Unavailable(f"the agent with volume {self._volume} took no lease token: {error}") from error
            await trio.sleep(pause_s)  # at once the first time: a newer token is mostly taken
            pause_s = RETRY_S
            if isinstance(held, Pass):
                self._leases.forget_pass(self._ino, self._volume, held)
            else:
                await self._leases.replace(held)
            held = await self._current_token()

    async def _current_token(self) -> Held | Pass:
        # A replica is what its stamp says, wherever the home is by now.
        if self._stamp is not None:
            return await self._leases.hold_pass(self._ino, self._volume)
        return await self._current_lease()

    async def _current_lease(self) -> Held:
        held = await self._leases.hold(self._ino)
        # From before the home moved to this volume, whose agent would not take it.
        if held.token.home_epoch < self._epoch:
            held = await self._leases.replace(held)
        if held.token.home_epoch != self._epoch:
            raise Fenced(f"the home of inode {self._ino} has moved: its epoch is {held.token.home_epoch}, not {self._epoch}")
        return held

    async def _persist(self, attempt: Callable[[], Awaitable[R]], *, repeatable: bool = True) -> R:
        """What *attempt* returns, tried again until the deadline; what is not *repeatable*, only while it was not done."""
        deadline = trio.current_time() + self._timeout_s
        while True:
            try:
                return await attempt()
            except Unavailable as error:
                if self._is_over(deadline, RETRY_S) or not (repeatable or isinstance(error, Undone)):
                    raise
                await trio.sleep(RETRY_S)

    def _works(self) -> None:
        self._worked_s = trio.current_time()

    def _is_over(self, deadline: float, pause_s: float) -> bool:
        """Whether another attempt after *pause_s* would begin too late."""
        return trio.current_time() + pause_s > max(deadline, self._worked_s + self._timeout_s)
