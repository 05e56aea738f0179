"""Answers mounts and agents of other servers: bytes of this server's objects.

A request is served only for a lease token that is sealed, unexpired, and of the right inode and mode; and its home epoch is
checked against the object's own record at the moment of use: a lease alone is no mutual exclusion, this check is. What
may wait for a disk runs in a thread.
"""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import trio

from agent.asking import asking_server
from agent.checking.damage import Examiner, Trust
from agent.copying.pulls import PullServer
from agent.objects.open_objects import ObjectKey, OpenObjects, open_object_file
from agent.objects.trash import TrashPurger
from agent.serving.machine import answer_about_machine, line_bytes
from agent.serving.progress import Progress
from agent.serving.volumes import Upkeep
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.clock import file_time_ns, monotonic_s, thread_s
from cluster.errors import (
    Changed,
    Fenced,
    GodwitError,
    ProtocolError,
    Refused,
    TokenRefused,
    Undone,
    error_text,
    from_os_error,
    refused,
)
from cluster.leases import LeaseToken, TokenGate
from cluster.messages import (
    PROTOCOL,
    PULLED_MAX_BYTES,
    AgentRequest,
    AllocateObject,
    BeginCommit,
    CheckVolumes,
    CommitObject,
    CopyObject,
    CreateObject,
    Data,
    DescribeMachine,
    Done,
    ExamineObject,
    Greeting,
    ListUnknown,
    MakeRoom,
    MeasureLine,
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
    SweepVolumes,
    SyncObject,
    TruncateObject,
    WriteObject,
    Written,
)
from cluster.rpc.connection import Answer
from cluster.rpc.serving import Replies
from cluster.rpc.session import ManagerSession
from cluster.volume.content import commit_object, content_of, object_lock, overlay, set_times, stamp_of
from cluster.volume.extents import allocate, copy, seek
from cluster.volume.fence import is_fenced, is_writable, lift
from cluster.volume.layout import read_record

R = TypeVar("R")

OPEN_OBJECTS = 512  # descriptors kept open for the next request
IO_MAX_BYTES = 4 * 1024 * 1024  # of one read or write; longer ones are refused
AHEAD_FROM_BYTES = 512 * 1024  # shorter ones are hardly of somebody who reads in sequence
AHEAD_BYTES = 8 * 1024 * 1024  # asked of the disk beyond a long read
OFFSET_MAX = 2**63 - 1  # loff_t, and inode numbers
MODE_MAX = 2**31 - 1  # the mode of fallocate(2) is an int
# After these the object is examined: it is away, or its disk does not give it.
LOST = (errno.ENOENT, errno.EIO)
LAST_REPLIES_S = 0.05
"""What is answered has still to be sent, by the connection's own tasks."""
MANAGER_TIMEOUT_S = 10.0  # one question within a request of a mount

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
    | ExamineObject
)
ObjectRequest = HomeRequest | CreateObject
# What changes an object or makes it durable is waited for as long as the disk works. What reads may find another replica.
PATIENT = frozenset({WriteObject, TruncateObject, AllocateObject, CopyObject, SyncObject, SetObjectTimes, CommitObject})


class DataServer:
    """Answers what comes over all connections to this agent."""

    def __init__(
        self,
        volumes: VolumeTable,
        session: ManagerSession,
        objects: OpenObjects,
        pulls: PullServer,
        trash: TrashPurger,
        gate: TokenGate,
        cluster: str,
        server: str,
        upkeep: Upkeep,
        examiner: Examiner,
        progress: Progress,
    ) -> None:
        self._cluster = cluster  # peers of another one are refused by their greeting
        self._server = server  # whose objects these are
        self._volumes = volumes  # open ones, by number
        self._session = session  # for what only the manager can order: commits and times
        self._objects = objects  # descriptors, kept from request to request
        self._pulls = pulls  # what agents ask
        self._trash = trash  # emptied when a write meets ENOSPC
        self._gate = gate  # tokens: sealed, unexpired, of the right inode and mode
        self._upkeep = upkeep  # what operators ask
        self._examiner = examiner  # of objects that are not as the catalog says
        self._progress = progress  # for who waits long for a disk
        self._trust = Trust(examiner)  # which objects need no examination
        self._under_way = 0  # requests of mounts and agents that are not answered
        self._stopping = False  # set by `drain`, never taken back
        self._idle = trio.Event()  # the last of them is answered, while stopping
        self._operations: dict[type, Callable[[Any, bytes], Awaitable[Any]]] = {  # of single objects, by the type of the request
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
            ExamineObject: self._examine,
        }

    def check_greeting(self, greeting: Greeting) -> None:
        """Raises `ProtocolError` for a peer of another cluster, or of another version of the protocol."""
        if (greeting.protocol, greeting.cluster) != (PROTOCOL, self._cluster):
            whose = f"{greeting.cluster[:100]!r}, version {greeting.protocol} of the protocol"
            raise ProtocolError(f"a peer of cluster {whose}; this is an agent of {self._cluster!r}, version {PROTOCOL}")

    def reply_bytes(self, request: AgentRequest[Any]) -> int:
        """See `Handler.reply_bytes`."""
        if isinstance(request, ReadObject):
            # What the connection sets aside for the answer: a peer may name any length.
            return min(max(0, request.length), IO_MAX_BYTES)
        if isinstance(request, PullObjects):
            return PULLED_MAX_BYTES
        if isinstance(request, MeasureLine):
            return line_bytes(request)
        return 0

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        """The reply to a request."""
        if self._stopping:
            raise Undone("this agent is stopping")
        if isinstance(request, CheckVolumes | ListUnknown | SweepVolumes | MakeRoom):
            return await self._upkeep.handle(request, send)  # may take long: an agent that stops does not wait for it
        if isinstance(request, DescribeMachine | MeasureLine):
            return await answer_about_machine(self._server, request)
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
        """Answers a request about one object, and translates the errors of its disk."""
        try:
            if isinstance(request, PullObject | SumBlocks):
                return await self._pulls.serve(request, send)
            if not 0 < request.ino <= OFFSET_MAX:
                raise refused(errno.EINVAL, f"inode {request.ino}")
            volume, operation = self._volumes.require(request.volume), self._operations[type(request)]
            if type(request) not in PATIENT:
                return await operation(request, body)
            with self._progress.waited_for(volume, send):
                return await operation(request, body)
        except PermissionError as error:
            # EPERM is the immutable flag: nothing else refuses root a write to its own object.
            # This agent committed the file for a mount that it took for gone: who is there gets another token and comes back.
            raise TokenRefused(f"inode {request.ino} on volume {request.volume} is fenced: {error_text(error)}") from error
        except OSError as error:
            self._volumes.met(request.volume, error)
            raise from_os_error(error, f"inode {request.ino} on volume {request.volume}") from error

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
            # A repeat after a lost answer finds the empty object that it made; anything more belongs to somebody.
            async with self._object(request) as existing:
                status = os.fstat(existing)
                if status.st_size or read_record(existing) is not None:
                    raise refused(errno.EEXIST, f"inode {request.ino} on volume {request.volume} has content") from None
                return ObjectStat(content_of(status))
        key = ObjectKey(request.volume, request.ino)
        self._trust.made(key)
        with self._objects.use(key, descriptor):
            return ObjectStat(content_of(os.fstat(descriptor)))

    async def _read(self, request: ReadObject, _body: bytes) -> Answer:
        offset, length = request.offset, request.length
        _require_range("read", offset, length)
        async with self._readable(request) as descriptor:
            # In the event loop: RWF_NOWAIT never waits for a disk, and a thread costs more than copying a page.
            data = _read_cached(descriptor, offset, length)
            if data is None:
                data = await self._in_thread(request, _read_from_disk, descriptor, length, offset)
            return Answer(Data(), data)

    async def _write(self, request: WriteObject, body: bytes) -> Written:
        _require_range("write", request.offset, len(body))
        async with self._home_object(request, to_write=True) as descriptor:
            # RWF_APPEND has the kernel choose the end, under the inode's lock: two appends never overlap.
            write = partial(os.pwritev, descriptor, [body], request.offset, os.RWF_APPEND if request.append else 0)
            return Written(await self._making_room(request, write))

    async def _making_room(self, request: HomeRequest, act: Callable[[], R]) -> R:
        """What *act* returns; if the volume is full, after the trash has been emptied."""
        began_s = thread_s()
        try:
            return await self._in_thread(request, act)
        except OSError as error:
            # Once: with an empty trash a full disk stays full.
            if error.errno != errno.ENOSPC or not await self._trash.make_room(self._volume(request), began_s):
                raise
        return await self._in_thread(request, act)

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
                # Callers of copy_file_range(2) take EXDEV for "copy by reading and writing".
                raise refused(errno.EXDEV, f"inode {source.ino} on volume {source.volume}: {error}") from error

    async def _sync(self, request: SyncObject, _body: bytes) -> Done:
        async with self._home_object(request) as descriptor:
            await self._in_thread(request, os.fsync, descriptor)
        return Done()

    async def _set_times(self, request: SetObjectTimes, _body: bytes) -> Node:
        async with self._locked_object(request) as descriptor:
            operation = SetAttr(request.ino, file_time_ns(), atime_ns=request.atime_ns, mtime_ns=request.mtime_ns)
            node = await self._session.apply_one(operation, timeout_s=MANAGER_TIMEOUT_S)
            # The times of a clean file are the catalog's alone; those of a dirty one are its object's until the commit.
            if not node.dirty:
                return node
            await self._in_thread(request, set_times, descriptor, request.atime_ns, request.mtime_ns)
            return overlay(node, content_of(os.fstat(descriptor)))

    async def _commit(self, request: CommitObject, _body: bytes) -> Node:
        async with self._locked_object(request) as descriptor:
            # Under the object's lock: between the number and the commit no other commit of this object begins here.
            begun = await self._session.call(BeginCommit(request.ino), timeout_s=MANAGER_TIMEOUT_S)
            node = begun.node
            # The home may have moved after the token was made: the token's epoch says which home its holder wrote to.
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

    async def _examine(self, request: ExamineObject, _body: bytes) -> Done:
        self._token(request)
        await self._examiner.examine(ObjectKey(request.volume, request.ino))
        return Done()

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
        # The open waits in a thread. If any object was forgotten meanwhile, ours may be one that was replaced: opened anew.
        while key not in self._objects:
            forgotten = self._objects.forgotten  # compared after the await
            try:
                opened = await self._in_thread(request, partial(open_object_file, path, lifting=lifting))
            except GodwitError as error:
                if error.errno in LOST:
                    with suppress(Refused):
                        await self._examiner.examine(key)  # says it, and why, if that is not as it should be
                raise
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
                await self._in_thread(request, _require_epoch, descriptor, token)
                await self._trust.require(ObjectKey(request.volume, request.ino), token, descriptor)
                yield descriptor
            else:
                self._require_stamp(request, descriptor, request.stamp)
                yield descriptor
                # Again: the answer may have been read half before and half after a change.
                self._require_stamp(request, descriptor, request.stamp)

    def _require_stamp(self, request: ReadObject, descriptor: int, stamp: Stamp) -> None:
        if stamp_of(os.fstat(descriptor)) != stamp:
            self._examiner.suspect(ObjectKey(request.volume, request.ino))
            raise Changed("the replica is not the one that the catalog knows")

    @asynccontextmanager
    async def _home_object(self, request: HomeRequest, *, to_write: bool = False) -> AsyncIterator[int]:
        token = self._token(request, to_write=to_write)
        async with self._object(request) as descriptor:
            await self._in_thread(request, _require_epoch, descriptor, token)
            await self._trust.require(ObjectKey(request.volume, request.ino), token, descriptor)
            # A descriptor opened while the object was fenced is for reading only.
            if not to_write or is_writable(descriptor):
                yield descriptor
                return
        # Outside of the block above, in which it is in use.
        self._objects.forget(ObjectKey(request.volume, request.ino))
        async with self._object(request, lifting=True) as descriptor:
            await self._in_thread(request, _lift_under, descriptor, token)
            yield descriptor

    @asynccontextmanager
    async def _locked_object(self, request: SetObjectTimes | CommitObject) -> AsyncIterator[int]:
        token = self._token(request, to_write=isinstance(request, SetObjectTimes))
        # The lock that mounts on this server take, too: a commit and a change of times never interleave.
        async with object_lock(self._volume(request).layout.object_path(request.ino)) as descriptor:
            await self._in_thread(request, _require_epoch, descriptor, token)
            yield descriptor

    def _token(self, request: HomeRequest, *, to_write: bool = False) -> LeaseToken:
        return self._gate.check(request.token, request.ino, monotonic_s(), asking_server(), to_write=to_write)


def _require_range(what: str, offset: int, length: int, most: int = IO_MAX_BYTES) -> None:
    if not (0 <= length <= most and 0 <= offset <= OFFSET_MAX - length):
        raise refused(errno.EINVAL, f"{what} of {length} bytes at {offset}")


def _lift_under(descriptor: int, token: LeaseToken) -> None:
    _require_epoch(descriptor, token)
    lift(descriptor)


def _require_epoch(descriptor: int, token: LeaseToken) -> None:
    """The record has the highest epoch under which the object was written; a token of a later one is the newer truth."""
    record = read_record(descriptor)
    # Later epochs pass: the record is written at the next commit only.
    if record is not None and token.home_epoch < record.home_epoch:
        raise Fenced(f"the home epoch of inode {token.ino} is {record.home_epoch} here, the lease token's {token.home_epoch}")


def _read_from_disk(descriptor: int, length: int, offset: int) -> bytes:
    """Reads, and has the disk read ahead if the byte before *offset* is cached, as in a sequential read. Blocks.

    A mount sends two requests at once, not always in order: the kernel's own read-ahead does not recognise them as sequential.
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
        # EAGAIN: not in the page cache. EOPNOTSUPP: a file system without RWF_NOWAIT.
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return None
        raise
    # Short, and not at the end of the file: the rest is not in the page cache.
    if count < length and offset + count < os.fstat(descriptor).st_size:
        return None
    return bytes(memoryview(buffer)[:count])
