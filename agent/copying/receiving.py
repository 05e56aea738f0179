"""The target's side of a copy: how a version of an object comes into `staging/`, by the way that moves the fewest bytes.

A source on this server is copied from disk to disk, or by reflink. Small objects come together.
Of a large one that is here in an older version only the parts that differ are sent (`agent/objects/blocks.py`). Whichever way,
what is returned has the digest of the source's version, and a large file is durable.

A pass to read is good for an access time, but a copy may take hours: each request of a copy gets a new pass when its own has run
out, and nothing that was done is done again.
"""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

import msgspec
import trio
from blake3 import blake3

from agent.copying.peers import PeerChannels, SmallPulls, pull_bulk
from agent.copying.pulls import SMALL_BYTES, PullServer, SmallObject, require_recorded, sum_bytes
from agent.objects.blocks import Rebuild, Unlike, is_worth_a_look
from agent.objects.disk_batches import DiskWork
from agent.objects.reading import ObjectReader, add_zeros, digest_of
from agent.objects.staging import Publication, StagedFile
from agent.volumes.volume import LocalVolume
from cluster.errors import Corrupt, ProtocolError, TokenRefused
from cluster.messages import RANGES_MAX, PullEnd, PullObject, SumBlocks, Task, Volume
from cluster.rpc.wire import AgentAt
from cluster.volume.layout import ObjectRecord, display_path

log = logging.getLogger(__name__)

R = TypeVar("R")

NewPass = Callable[[PullObject], Awaitable[PullObject]]

TURN_BYTES = 32 * 1024 * 1024  # copied by one turn of a thread; cancelling waits for no more than that
LONG_BYTES = 8 * 1024 * 1024  # from here on around the page cache; below, waiting for each write costs more than the cache


class Receiver:
    """Brings objects into `staging/`. *new_pass* returns a request as it is, but for a pass that is good again."""

    def __init__(self, channels: PeerChannels, small: SmallPulls, pulls: PullServer, new_pass: NewPass, *, plain: bool) -> None:
        self._channels = channels  # connections of their own for large transfers
        self._small = small  # those that go together
        self._pulls = pulls  # this agent's own source: the same checks for a copy from disk to disk
        self._new_pass = new_pass  # asks the manager
        self._plain = plain  # large contents may come unencrypted

    async def receive(self, task: Task, request: PullObject, peer: Volume | None, work: DiskWork, *, stale: bool) -> Publication:
        """The version that *request* asks for. *peer* is None for a volume of this server; *stale*: an older version is here.

        Raises what the source answers, and `OSError` for the disk of the target only.
        """
        if peer is None:
            return await self._copy_here(task, request, work)
        if request.stamp.size <= SMALL_BYTES:
            return await self._receive_small(task, request, peer, work)
        if stale:
            # Nothing is kept of the attempt: its staged file is gone when this block is left.
            with suppress(Unlike):
                return await self._rebuild(task, request, peer, work)
        return await self._receive_large(task, request, peer, work)

    async def _copy_here(self, task: Task, request: PullObject, work: DiskWork) -> Publication:
        async with _staged(task, work, direct=_is_long(request)) as staged, self._pulls.reading(request) as reader:
            if await work.in_thread(_clone_at_rest, staged, reader):
                # The clone is read, not the object: nobody can write the clone.
                checksum = await work.in_thread(digest_of, staged.descriptor)
            else:
                while not reader.finished:
                    await work.in_thread(_append_some, staged, reader)
                checksum = reader.digest()
            # Within the block: `reading` turns what it raises into an examination of the source.
            require_recorded(reader.record(), request, checksum)
            return await _finished(task, request, checksum, staged, work)

    async def _receive_small(self, task: Task, request: PullObject, peer: Volume, work: DiskWork) -> Publication:
        small = await self._with_pass(request, partial(self._small.pull, AgentAt.of(peer)))
        return small_publication(task, request, small, work.volume)

    async def _receive_large(self, task: Task, request: PullObject, peer: Volume, work: DiskWork) -> Publication:
        hasher = blake3()
        async with _staged(task, work, direct=_is_long(request)) as staged:

            def take(data: memoryview) -> None:
                # Runs in one thread after the other, never in two: the connection gives one chunk at a time.
                hasher.update(data)
                staged.append(data)

            def skip(length: int) -> None:
                add_zeros(hasher, length)
                staged.append_hole(length)

            async def pull(request: PullObject) -> PullEnd:
                async with self._channels.own(AgentAt.of(peer)) as connection:
                    return await pull_bulk(connection, request, request.stamp.size, take, work.volume.bulk_io, skip=skip)

            # Repeated at most once, and only before the first byte, so `hasher` and `staged` are untouched then.
            end = await self._with_pass(msgspec.structs.replace(request, takes_holes=True, takes_plain=self._plain), pull)
            _require_sent(task, end.checksum, hasher.digest())
            return await _finished(task, request, end.checksum, staged, work)

    async def _rebuild(self, task: Task, request: PullObject, peer: Volume, work: DiskWork) -> Publication:
        """Makes the version from the stale object here and what differs in it; raises `Unlike` if that is not worth it."""
        size, limiter = request.stamp.size, work.volume.bulk_io
        async with _stale_object(task, work) as stale, _staged(task, work) as staged:
            if not is_worth_a_look(os.fstat(stale).st_size, size):
                raise Unlike
            # The stale object may lose its name while it is read; the descriptor keeps what it was.
            rebuild = await work.in_thread(Rebuild, stale, staged, size)

            async def compare(request: PullObject) -> PullEnd:
                async with self._channels.own(AgentAt.of(peer)) as connection:
                    return await pull_bulk(connection, sums_of(request), sum_bytes(size), rebuild.compare, limiter)

            async def fill(request: PullObject) -> PullEnd:
                length = sum(length for _, length in request.ranges)
                async with self._channels.own(AgentAt.of(peer)) as connection:
                    return await pull_bulk(connection, request, length, rebuild.fill, limiter)

            whole = await self._with_pass(request, compare)
            missing = rebuild.missing()
            for start in range(0, len(missing), RANGES_MAX):
                parts = msgspec.structs.replace(request, ranges=missing[start : start + RANGES_MAX], takes_plain=self._plain)
                await self._with_pass(parts, fill)
            await work.in_thread(rebuild.end)
            # Read back from the file: with a reflink, the stale object may have changed between the clone and the comparison.
            if await work.in_thread(digest_of, staged.descriptor) != whole.checksum:
                log.warning("inode %d on volume %d could not be made from its older version", task.ino, task.volume)
                raise Unlike
            log.debug("inode %d on volume %d: %d parts of %d bytes differed", task.ino, task.volume, len(missing), size)
            return await _finished(task, request, whole.checksum, staged, work)

    async def _with_pass(self, request: PullObject, ask: Callable[[PullObject], Awaitable[R]]) -> R:
        """What the source answers to *request*; it is refused before anything is sent if its pass has run out."""
        try:
            return await ask(request)
        except TokenRefused:
            # Twice would be an error of clocks or keys, which a third pass does not cure.
            # It has waited here for longer than its pass is good, the manager is a new one, or the pass was for another source.
            return await ask(await self._new_pass(request))


def small_publication(task: Task, request: PullObject, small: SmallObject, volume: LocalVolume) -> Publication:
    """A small object that has come, checked. Raises `ProtocolError` or `Corrupt`."""
    # Two questions: did the network bring what was sent, and was that what the catalog means?
    _require_sent(task, small.checksum, blake3(small.content).digest())
    _require_expected(task, request, small.checksum)
    return Publication(volume, _record_for(task, request, small.checksum), small.content)


def sums_of(request: PullObject) -> SumBlocks:
    """The question for the digests of all blocks of what *request* asks for."""
    return SumBlocks(request.ino, request.volume, request.version, request.stamp, request.token, request.is_written)


def _is_long(request: PullObject) -> bool:
    return request.stamp.size >= LONG_BYTES


@asynccontextmanager
async def _staged(task: Task, work: DiskWork, *, direct: bool = False) -> AsyncIterator[StagedFile]:
    """A file in `staging/`, removed if the block is left by an exception; else what became of it took it over."""
    staged = await work.in_thread(partial(StagedFile, work.volume, task.ino, direct=direct))
    try:
        yield staged
    except BaseException:
        # A cancelled copy must not leave its file: `staging/` is emptied only when the volume is opened.
        with trio.CancelScope(shield=True):
            await work.in_thread(staged.discard)
        raise


@asynccontextmanager
async def _stale_object(task: Task, work: DiskWork) -> AsyncIterator[int]:
    try:
        descriptor = await work.in_thread(work.volume.layout.open_object, task.ino, os.O_RDONLY)
    except OSError as error:
        # It is gone or its disk does not give it: then the whole is copied.
        raise Unlike from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _clone_at_rest(staged: StagedFile, reader: ObjectReader) -> bool:
    """Whether *staged* could be made a reflink of the object, which did not change meanwhile."""
    if not staged.clone(reader.content, reader.bytes):
        return False
    # After the clone: a change before it shows in the stamp, one after it is not in the clone.
    reader.check()
    return True


def _append_some(staged: StagedFile, reader: ObjectReader) -> None:
    end = staged.size + TURN_BYTES
    while staged.size < end and not reader.finished:
        if hole := reader.skip_hole():
            staged.append_hole(hole)
        else:
            staged.append(reader.read())


async def _finished(task: Task, request: PullObject, checksum: bytes, staged: StagedFile, work: DiskWork) -> Publication:
    _require_expected(task, request, checksum)
    record = _record_for(task, request, checksum)

    def finish() -> None:
        staged.complete(record)
        # Durable before it is handed to `publish`: the rename must never come first.
        staged.sync()

    await work.in_thread(finish)
    return Publication(work.volume, record, staged)


def _require_sent(task: Task, sent: bytes, received: bytes) -> None:
    if received != sent:
        raise ProtocolError(f"inode {task.ino} arrived with the digest {received.hex()}, sent was {sent.hex()}")


def _require_expected(task: Task, request: PullObject, checksum: bytes) -> None:
    if task.checksum and request.version == task.version and task.checksum != checksum:
        raise Corrupt(
            f"inode {task.ino} on volume {request.volume}, version {request.version}: "
            f"the content's digest is {checksum.hex()}, the catalog's {task.checksum.hex()}"
        )


def _record_for(task: Task, request: PullObject, checksum: bytes) -> ObjectRecord:
    """What the copy's object says of itself."""
    return ObjectRecord(
        ino=task.ino,
        version=request.version,
        home_epoch=task.home_epoch,
        checksum=checksum.hex(),
        path=display_path(task.path),
        mode=task.mode,
        uid=task.uid,
        gid=task.gid,
        mtime_ns=request.stamp.mtime_ns,
    )
