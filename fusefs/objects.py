"""The object behind an open file: on this server's own disk, or at another server's agent.

Both kinds have the same methods, so that the overlay does not care which it has.
"""

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

import trio

from cluster.errors import Changed, Fenced, GodwitError, TokenRefused, Unavailable, Undone, from_os_error, refused
from cluster.messages import (
    AllocateObject,
    Commit,
    CommitObject,
    Content,
    CopyObject,
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
from cluster.rpc.session import ManagerSession
from cluster.volume.content import ApplyOne, commit_object, content_of, object_lock, prepare_commit, stamp_of
from cluster.volume.extents import allocate, copy, is_repeatable, seek
from cluster.volume.fence import is_writable, lift, open_object_at
from cluster.volume.layout import VolumeLayout
from fusefs.caching.tokens import Held, Leases
from fusefs.content.peers import Peers

log = logging.getLogger(__name__)

R = TypeVar("R")

Buffer = bytes | memoryview

INLINE_WRITE_BYTES = 64 * 1024
RETRY_S = 0.25
_NO_CONTENT = (StatObject, SyncObject, CommitObject, SetObjectTimes)  # neither read nor write it


class Object(Protocol):
    """What a file's content can be asked for. All methods raise `GodwitError`."""

    is_remote: bool

    @property
    def is_fenced(self) -> bool:
        """Whether it must be opened anew before it can be written."""

    async def read(self, offset: int, length: int) -> Buffer: ...

    async def write(self, offset: int, data: bytes, *, append: bool) -> int: ...

    async def truncate(self, size: int) -> None: ...

    async def allocate(self, mode: int, offset: int, length: int) -> None: ...

    async def seek(self, offset: int, whence: int) -> int | None:
        """Where data or a hole begins; None if nothing of the kind follows."""

    async def copy_from(self, source: "Object", start: int, offset: int, length: int) -> int:
        """Copies from *start* of the source to *offset*, without the bytes coming here; returns how much, 0 at the end.

        Refused with EXDEV if that cannot be done with this source.
        """

    async def sync(self, *, data_only: bool) -> None: ...

    async def stat(self) -> Content: ...

    async def commit(self, node: Node, path: bytes, *, final: bool) -> Node: ...

    async def set_times(self, change: SetAttr) -> Node: ...

    def close(self) -> None: ...


class LocalObject:
    """An object on one of this server's volumes.

    What the page cache can answer is done at once; what may wait for a disk goes to a thread, so that it holds up
    nobody else.
    """

    is_remote = False

    def __init__(self, path: str, descriptor: int, session: ManagerSession, timeout_s: float) -> None:
        self._path = path
        self._descriptor = descriptor
        self._append_descriptor = -1
        self._session = session
        self._timeout_s = timeout_s
        self._users = 0
        self._closing = False

    @classmethod
    def open(cls, volume_path: str, ino: int, flags: int, session: ManagerSession, timeout_s: float) -> "LocalObject":
        """Opens an existing object; raises `GodwitError`."""
        return cls._opened(volume_path, ino, lambda layout: layout.open_object(ino, flags), session, timeout_s)

    @classmethod
    def open_home(
        cls, volume_path: str, ino: int, session: ManagerSession, timeout_s: float, *, to_write: bool = False
    ) -> "LocalObject":
        """Opens a home's object; *to_write*: this mount is registered as a writer, so that a fence is lifted."""

        def open_at(layout: VolumeLayout) -> int:
            return open_object_at(layout.object_path(ino), lifting=to_write)

        return cls._opened(volume_path, ino, open_at, session, timeout_s)

    @classmethod
    def _opened(
        cls,
        volume_path: str,
        ino: int,
        open_at: Callable[[VolumeLayout], int],
        session: ManagerSession,
        timeout_s: float,
    ) -> "LocalObject":
        layout = VolumeLayout.at(volume_path)
        try:
            descriptor = open_at(layout)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise GodwitError(f"inode {ino} has no object on {volume_path}", errno.EIO) from error
            raise from_os_error(error, f"object {ino} on {volume_path}") from error
        return cls(layout.object_path(ino), descriptor, session, timeout_s)

    @classmethod
    def create(cls, volume_path: str, ino: int, session: ManagerSession, timeout_s: float) -> "LocalObject":
        """Makes an empty object; raises `GodwitError`."""
        layout = VolumeLayout.at(volume_path)
        try:
            descriptor = layout.create_object(ino)
        except FileNotFoundError as error:
            raise GodwitError(f"{volume_path} is not there: is its disk mounted?") from error
        except OSError as error:
            raise from_os_error(error, f"creating object {ino} on {volume_path}") from error
        return cls(layout.object_path(ino), descriptor, session, timeout_s)

    @property
    def is_fenced(self) -> bool:
        return not is_writable(self._descriptor)

    @property
    def descriptor(self) -> int:
        """For the kernel's use, as long as the object is not closed."""
        return self._descriptor

    @property
    def path(self) -> str:
        """Where it was opened."""
        return self._path

    def stamp(self) -> Stamp:
        return stamp_of(os.fstat(self._descriptor))

    def born_ns(self) -> int:
        """The time that the disk's file system gave the object."""
        return os.fstat(self._descriptor).st_mtime_ns

    def remove(self) -> None:
        """Takes back a creation that the catalog refused."""
        os.unlink(self._path)
        self.close()

    async def read(self, offset: int, length: int) -> Buffer:
        buffer = bytearray(length)
        try:
            count = os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
            if count == length or offset + count >= os.fstat(self._descriptor).st_size:
                return memoryview(buffer)[:count]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                raise from_os_error(error, f"reading {self._path}") from error
        return await self._in_thread("reading", os.pread, self._descriptor, length, offset)

    async def write(self, offset: int, data: bytes, *, append: bool) -> int:
        descriptor = self._appending() if append else self._descriptor
        if len(data) > INLINE_WRITE_BYTES:
            return await self._in_thread("writing", os.pwrite, descriptor, data, offset)
        try:
            return os.pwrite(descriptor, data, offset)
        except OSError as error:
            raise _disk_error(error, f"writing {self._path}") from error

    def _appending(self) -> int:
        """A descriptor on which Linux appends whatever offset it is given (pwrite(2), BUGS)."""
        if self._append_descriptor < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            try:
                self._append_descriptor = os.open(f"/proc/self/fd/{self._descriptor}", flags)
            except OSError as error:
                raise _disk_error(error, f"opening {self._path} for appending") from error
        return self._append_descriptor

    async def truncate(self, size: int) -> None:
        await self._in_thread("truncating", os.ftruncate, self._descriptor, size)

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        await self._in_thread("allocating", allocate, self._descriptor, mode, offset, length)

    async def seek(self, offset: int, whence: int) -> int | None:
        return await self._in_thread("seeking in", seek, self._descriptor, offset, whence)

    async def copy_from(self, source: Object, start: int, offset: int, length: int) -> int:
        if not isinstance(source, LocalObject) or source._closing:
            raise refused(errno.EXDEV)
        with source._in_use():
            return await self._in_thread("copying to", copy, source._descriptor, self._descriptor, start, offset, length)

    async def sync(self, *, data_only: bool) -> None:
        await self._in_thread("syncing", os.fdatasync if data_only else os.fsync, self._descriptor)

    async def stat(self) -> Content:
        return self.content()

    def content(self) -> Content:
        """Size and times as they are."""
        return content_of(os.fstat(self._descriptor))

    async def commit(self, node: Node, path: bytes, *, final: bool) -> Node:
        try:
            async with object_lock(self._path) as descriptor:
                return await commit_object(descriptor, node, path, final=final, apply=self._session.applier(self._timeout_s))
        except OSError as error:
            raise _disk_error(error, f"committing {self._path}") from error

    @asynccontextmanager
    async def prepared(self, node: Node, path: bytes) -> AsyncIterator[Commit]:
        """The final commit of the object as it is; its lock is held inside, until the catalog has answered."""
        try:
            async with object_lock(self._path) as descriptor:
                yield await prepare_commit(descriptor, node, path, final=True)
        except OSError as error:
            raise _disk_error(error, f"committing {self._path}") from error

    async def set_times(self, change: SetAttr, apply: ApplyOne | None = None) -> Node:
        """Sets the times in the catalog, by *apply*, and, while the file is dirty, on the object, with no commit in between."""
        apply = apply or self._session.applier(self._timeout_s)
        try:
            async with object_lock(self._path) as descriptor:
                node = await apply(change)
                if node.dirty and change.mtime_ns is not None:
                    lift(descriptor)  # the next commit has this change; an agent that makes it fences again
                    os.utime(descriptor, ns=(change.mtime_ns, change.mtime_ns))
                return node
        except OSError as error:
            raise from_os_error(error, f"setting the times of {self._path}") from error

    def close(self) -> None:
        """Closes the object as soon as no thread works on it any more."""
        self._closing = True
        if self._users == 0 and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._append_descriptor >= 0:
                os.close(self._append_descriptor)
                self._append_descriptor = -1

    async def _in_thread(self, what: str, function: Callable[..., R], *args: object) -> R:
        try:
            with self._in_use():
                return await trio.to_thread.run_sync(function, *args)
        except OSError as error:
            raise _disk_error(error, f"{what} {self._path}") from error

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._closing:
                self.close()


class RemoteObject:
    """The object at its home on another server, or a replica there when `stamp` is given (then for reading only).

    Every request carries a good lease token. Requests that may be repeated are repeated until the deadline when the
    connection breaks; an append only if it was certainly not done. Raises `Fenced` when the home has moved on.
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
        self._epoch = node.home_epoch
        self._stamp = stamp
        self._timeout_s = timeout_s

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
            held = await self._current_lease()
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
        held = await self._current_lease()
        pause_s = 0.0
        while True:
            request = make(held.sealed)
            if not isinstance(request, _NO_CONTENT):
                self._leases.check_content(self._ino)
            try:
                return await self._peers.exchange(self._volume, request, body=body, once=once)
            except TokenRefused as error:
                if trio.current_time() + pause_s > deadline:
                    raise Unavailable(f"the agent with volume {self._volume} took no lease token: {error}") from error
            await trio.sleep(pause_s)
            pause_s = RETRY_S
            await self._leases.replace(held)
            held = await self._current_lease()

    async def _current_lease(self) -> Held:
        held = await self._leases.hold(self._ino)
        if held.token.home_epoch < self._epoch:
            held = await self._leases.replace(held)
        if self._stamp is None and held.token.home_epoch != self._epoch:
            raise Fenced(f"the home of inode {self._ino} has moved: its epoch is {held.token.home_epoch}, not {self._epoch}")
        return held

    async def _persist(self, attempt: Callable[[], Awaitable[R]], *, repeatable: bool = True) -> R:
        """What *attempt* returns, tried again until the deadline; what is not *repeatable*, only while it was not done."""
        deadline = trio.current_time() + self._timeout_s
        while True:
            try:
                return await attempt()
            except Unavailable as error:
                if trio.current_time() + RETRY_S > deadline or not (repeatable or isinstance(error, Undone)):
                    raise
                await trio.sleep(RETRY_S)


def _disk_error(error: OSError, what: str) -> GodwitError:
    """The error for a failed system call; `Fenced` if the object is: its agent has committed it, others may write it now."""
    if error.errno == errno.EPERM:
        return Fenced(f"{what}: this mount was away for so long that the file was committed without it")
    return from_os_error(error, what)


def check_replica(replica: LocalObject, stamp: Stamp | None, ino: int) -> None:
    """Raises `Changed` unless a replica on this server's disk still has the stamp that the catalog knows."""
    if stamp is None or replica.stamp() != stamp:
        raise Changed(f"the replica of inode {ino} on this server is not what the catalog knows")
