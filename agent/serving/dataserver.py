"""Answers mounts and agents of other servers: bytes of this server's objects.

A request is served only for a lease token that is sealed, unexpired, and of the right inode and mode; and its home epoch is
checked against the object's own record at the moment of use: a lease alone is no mutual exclusion, this check is. What
may wait for a disk runs in a thread.
"""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import trio

from agent.copying.pulls import PullServer
from agent.objects.open_objects import ObjectKey, OpenObjects, open_object_file
from agent.trash import TrashPurger
from agent.volumes import LocalVolume, VolumeTable
from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import Changed, Fenced, GodwitError, TokenRefused, Undone, from_os_error, refused
from cluster.leases import LeaseToken, TokenGate
from cluster.messages import (
    AgentRequest,
    AllocateObject,
    BeginCommit,
    CommitObject,
    CopyObject,
    CreateObject,
    Data,
    Done,
    Node,
    ObjectStat,
    Operation,
    Position,
    PullObject,
    PullObjects,
    ReadObject,
    SeekObject,
    SetAttr,
    SetObjectTimes,
    Stamp,
    StatObject,
    SumBlocks,
    SyncObject,
    TruncateObject,
    WriteObject,
    Written,
)
from cluster.rpc.connection import Answer, Replies
from cluster.rpc.session import ManagerSession
from cluster.volume.content import commit_object, content_of, object_lock, overlay, stamp_of
from cluster.volume.extents import allocate, copy, seek
from cluster.volume.fence import is_fenced, is_writable, lift
from cluster.volume.layout import read_record

R = TypeVar("R")

OPEN_OBJECTS = 512
IO_MAX_BYTES = 4 * 1024 * 1024
AHEAD_FROM_BYTES = 512 * 1024  # shorter ones are hardly of somebody who reads in sequence
AHEAD_BYTES = 8 * 1024 * 1024
INLINE_WRITE_BYTES = 64 * 1024
OFFSET_MAX = 2**63 - 1
MODE_MAX = 2**31 - 1
LAST_REPLIES_S = 0.05
"""What is answered has still to be sent, by the connection's own tasks."""
MANAGER_TIMEOUT_S = 10.0

HomeRequest = (
    StatObject
    | ReadObject
    | WriteObject
    | TruncateObject
    | AllocateObject
    | SeekObject
    | CopyObject
    | SyncObject
    | SetObjectTimes
    | CommitObject
)
ObjectRequest = HomeRequest | CreateObject


class DataServer:
    """The handler of all connections to this agent."""

    def __init__(
        self,
        volumes: VolumeTable,
        session: ManagerSession,
        objects: OpenObjects,
        pulls: PullServer,
        trash: TrashPurger,
        gate: TokenGate,
    ) -> None:
        self._volumes = volumes
        self._session = session
        self._objects = objects
        self._pulls = pulls
        self._trash = trash
        self._gate = gate
        self._under_way = 0
        self._stopping = False
        self._idle = trio.Event()
        self._operations: dict[type, Callable[[Any, bytes], Awaitable[Any]]] = {
            StatObject: self._stat,
            CreateObject: self._create,
            ReadObject: self._read,
            WriteObject: self._write,
            TruncateObject: self._truncate,
            AllocateObject: self._allocate,
            SeekObject: self._seek,
            CopyObject: self._copy,
            SyncObject: self._sync,
            SetObjectTimes: self._set_times,
            CommitObject: self._commit,
        }

    def at_once(self, request: AgentRequest) -> None:
        """Every request here may have to wait for a disk."""

    async def handle(self, request: AgentRequest, body: bytes, send: Replies) -> Any:
        if self._stopping:
            raise Undone("this agent is stopping")
        self._under_way += 1
        try:
            if isinstance(request, PullObjects):
                return await self._pulls.serve_many(request)
            return await self._handle_one(request, body, send)
        finally:
            self._under_way -= 1
            if self._stopping and not self._under_way:
                self._idle.set()

    async def _handle_one(self, request: ObjectRequest | PullObject | SumBlocks, body: bytes, send: Replies) -> Any:
        """Of one object."""
        try:
            if isinstance(request, PullObject | SumBlocks):
                return await self._pulls.serve(request, send)
            if not 0 < request.ino <= OFFSET_MAX:
                raise refused(errno.EINVAL, f"inode {request.ino}")
            self._volumes.require(request.volume)
            return await self._operations[type(request)](request, body)
        except PermissionError as error:
            # This agent committed the file for a mount that it took for gone: who is there gets another token and comes back.
            raise TokenRefused(f"inode {request.ino} on volume {request.volume} is fenced: {error}") from error
        except OSError as error:
            raise from_os_error(error, f"inode {request.ino} on volume {request.volume}") from error

    def closed(self) -> None:
        """Nothing is kept for a connection."""

    async def drain(self) -> None:
        """Refuses new requests from now on and returns when those under way are answered."""
        self._stopping = True
        if self._under_way:
            await self._idle.wait()
            await trio.sleep(LAST_REPLIES_S)

    # --------------------------------------------------------------------------------------------- operations

    async def _stat(self, request: StatObject, _body: bytes) -> ObjectStat:
        async with self._home_object(request) as descriptor:
            return ObjectStat(content_of(os.fstat(descriptor)))

    async def _create(self, request: CreateObject, _body: bytes) -> ObjectStat:
        volume = self._volumes.require(request.volume)
        try:
            descriptor = await self._in_thread(request, volume.layout.create_object, request.ino)
        except FileExistsError:
            async with self._object(request) as existing:
                status = os.fstat(existing)
                if status.st_size or read_record(existing) is not None:
                    raise refused(errno.EEXIST, f"inode {request.ino} on volume {request.volume} has content") from None
                return ObjectStat(content_of(status))
        with self._objects.use(ObjectKey(request.volume, request.ino), descriptor):
            return ObjectStat(content_of(os.fstat(descriptor)))

    async def _read(self, request: ReadObject, _body: bytes) -> Answer:
        offset, length = request.offset, request.length
        _require_range("read", offset, length)
        async with self._readable(request) as descriptor:
            data = _read_cached(descriptor, offset, length)
            if data is None:
                data = await self._in_thread(request, _read_from_disk, descriptor, length, offset)
            return Answer(Data(), data)

    async def _write(self, request: WriteObject, body: bytes) -> Written:
        _require_range("write", request.offset, len(body))
        async with self._home_object(request, to_write=True) as descriptor:
            write = partial(os.pwritev, descriptor, [body], request.offset, os.RWF_APPEND if request.append else 0)
            return Written(await self._making_room(request, write, inline=len(body) <= INLINE_WRITE_BYTES))

    async def _making_room(self, request: HomeRequest, act: Callable[[], R], *, inline: bool = False) -> R:
        """What *act* returns; if the volume is full, after the trash has been emptied."""
        try:
            return act() if inline else await self._in_thread(request, act)
        except OSError as error:
            if error.errno != errno.ENOSPC or not await self._trash.make_room(self._volume(request)):
                raise
        return act() if inline else await self._in_thread(request, act)

    async def _truncate(self, request: TruncateObject, _body: bytes) -> Done:
        if not 0 <= request.size <= OFFSET_MAX:
            raise refused(errno.EINVAL, f"size {request.size}")
        async with self._home_object(request, to_write=True) as descriptor:
            await self._in_thread(request, os.ftruncate, descriptor, request.size)
        return Done()

    async def _allocate(self, request: AllocateObject, _body: bytes) -> Done:
        offset, length = request.offset, request.length
        _require_range("allocation", offset, length, OFFSET_MAX)
        if not 0 <= request.mode <= MODE_MAX:
            raise refused(errno.EOPNOTSUPP, f"mode {request.mode}")
        async with self._home_object(request, to_write=True) as descriptor:
            await self._making_room(request, partial(allocate, descriptor, request.mode, offset, length))
        return Done()

    async def _seek(self, request: SeekObject, _body: bytes) -> Position:
        _require_range("seek", request.offset, 0)
        if request.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise refused(errno.EINVAL, f"whence {request.whence}")
        async with self._home_object(request) as descriptor:
            return Position(await self._in_thread(request, seek, descriptor, request.offset, request.whence))

    async def _copy(self, request: CopyObject, _body: bytes) -> Written:
        source = request.source
        _require_range("copy", request.offset, source.length, OFFSET_MAX)
        _require_range("copy", source.offset, source.length, OFFSET_MAX)
        async with self._home_object(request, to_write=True) as target:
            try:
                async with self._readable(source) as descriptor:
                    act = partial(copy, descriptor, target, source.offset, request.offset, source.length)
                    return Written(await self._making_room(request, act))
            except GodwitError as error:
                raise refused(errno.EXDEV, f"inode {source.ino} on volume {source.volume}: {error}") from error

    async def _sync(self, request: SyncObject, _body: bytes) -> Done:
        async with self._home_object(request) as descriptor:
            await self._in_thread(request, os.fsync, descriptor)
        return Done()

    async def _set_times(self, request: SetObjectTimes, _body: bytes) -> Node:
        async with self._locked_object(request) as descriptor:
            operation = SetAttr(request.ino, file_time_ns(), atime_ns=request.atime_ns, mtime_ns=request.mtime_ns)
            node = await self._session.apply_one(operation, timeout_s=MANAGER_TIMEOUT_S)
            if not node.dirty:
                return node
            lift(descriptor)  # the next commit has this change; an agent that makes it fences again
            status = os.fstat(descriptor)
            atime_ns = status.st_atime_ns if request.atime_ns is None else request.atime_ns
            mtime_ns = status.st_mtime_ns if request.mtime_ns is None else request.mtime_ns
            os.utime(descriptor, ns=(atime_ns, mtime_ns))
            return overlay(node, content_of(os.fstat(descriptor)))

    async def _commit(self, request: CommitObject, _body: bytes) -> Node:
        async with self._locked_object(request) as descriptor:
            begun = await self._session.call(BeginCommit(request.ino), timeout_s=MANAGER_TIMEOUT_S)
            node = begun.node
            if (node.home_volume, node.home_epoch) != (request.volume, self._token(request).home_epoch):
                raise Fenced(f"the home of inode {request.ino} is volume {node.home_volume}, epoch {node.home_epoch}")
            return await commit_object(
                descriptor,
                node,
                b"",
                final=request.final,
                apply=self._apply,
                begun=begun.number,
                fenced=is_fenced(descriptor),
            )

    # ------------------------------------------------------------------------------------------------ objects

    async def _apply(self, operation: Operation) -> Node:
        return await self._session.apply_one(operation, timeout_s=MANAGER_TIMEOUT_S)

    async def _in_thread(self, request: ObjectRequest, function: Callable[..., R], *arguments: Any) -> R:
        limiter = self._volume(request).small_io
        return await trio.to_thread.run_sync(function, *arguments, limiter=limiter)

    def _volume(self, request: ObjectRequest) -> LocalVolume:
        return self._volumes.require(request.volume)

    @asynccontextmanager
    async def _object(self, request: ObjectRequest, *, lifting: bool = False) -> AsyncIterator[int]:
        path = self._volume(request).layout.object_path(request.ino)
        key = ObjectKey(request.volume, request.ino)
        opened = None
        while key not in self._objects:
            forgotten = self._objects.forgotten
            opened = await self._in_thread(request, partial(open_object_file, path, lifting=lifting))
            if self._objects.forgotten == forgotten:
                break
            os.close(opened)
            opened = None
        with self._objects.use(key, opened) as descriptor:
            yield descriptor

    @asynccontextmanager
    async def _readable(self, request: ReadObject) -> AsyncIterator[int]:
        """The home's object, or a replica that is the one with the request's stamp before and after."""
        token = self._token(request)
        async with self._object(request) as descriptor:
            if request.stamp is None:
                _require_epoch(descriptor, token)
                yield descriptor
            else:
                _require_stamp(descriptor, request.stamp)
                yield descriptor
                _require_stamp(descriptor, request.stamp)

    @asynccontextmanager
    async def _home_object(self, request: HomeRequest, *, to_write: bool = False) -> AsyncIterator[int]:
        token = self._token(request, to_write=to_write)
        async with self._object(request) as descriptor:
            _require_epoch(descriptor, token)
            if not to_write or is_writable(descriptor):
                yield descriptor
                return
        self._objects.forget(ObjectKey(request.volume, request.ino))
        async with self._object(request, lifting=True) as descriptor:
            _require_epoch(descriptor, token)
            lift(descriptor)
            yield descriptor

    @asynccontextmanager
    async def _locked_object(self, request: SetObjectTimes | CommitObject) -> AsyncIterator[int]:
        token = self._token(request)
        async with object_lock(self._volume(request).layout.object_path(request.ino)) as descriptor:
            _require_epoch(descriptor, token)
            yield descriptor

    def _token(self, request: HomeRequest, *, to_write: bool = False) -> LeaseToken:
        return self._gate.check(request.token, request.ino, monotonic_s(), to_write=to_write)


def _require_range(what: str, offset: int, length: int, most: int = IO_MAX_BYTES) -> None:
    if not (0 <= length <= most and 0 <= offset <= OFFSET_MAX - length):
        raise refused(errno.EINVAL, f"{what} of {length} bytes at {offset}")


def _require_epoch(descriptor: int, token: LeaseToken) -> None:
    """The record has the highest epoch under which the object was written; a token of a later one is the newer truth."""
    record = read_record(descriptor)
    if record is not None and token.home_epoch < record.home_epoch:
        raise Fenced(f"the home epoch of inode {token.ino} is {record.home_epoch} here, the lease token's {token.home_epoch}")


def _require_stamp(descriptor: int, stamp: Stamp) -> None:
    if stamp_of(os.fstat(descriptor)) != stamp:
        raise Changed("the replica is not the one that the catalog knows")


def _read_from_disk(descriptor: int, length: int, offset: int) -> bytes:
    """Has the disk go on with what follows, if what comes before was read as well. Blocks.

    Requests of a mount come by twos, and not always in order: the kernel's own read-ahead does not see what they are about.
    """
    if length >= AHEAD_FROM_BYTES and (offset == 0 or _read_cached(descriptor, offset - 1, 1) is not None):
        os.posix_fadvise(descriptor, offset + length, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
    return os.pread(descriptor, length, offset)


def _read_cached(descriptor: int, offset: int, length: int) -> bytes | None:
    """What a read gives if the page cache has all of it, else None."""
    buffer = bytearray(length)
    try:
        count = os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    if count < length and offset + count < os.fstat(descriptor).st_size:
        return None
    return bytes(memoryview(buffer)[:count])
