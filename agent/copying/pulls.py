"""The source's side of a copy: an object, parts of one or digests of its blocks, only if it is what the catalog says it is.

Nothing here writes to the object: even setting its record would change the stamp by which it is known.
"""

import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import trio

from agent.asking import asking_server
from agent.batches import side_by_side
from agent.checking.damage import Examiner
from agent.objects.blocks import BlockSums
from agent.objects.open_objects import ObjectKey
from agent.objects.reading import Altered, ObjectReader, Unreadable
from agent.objects.small import Read, read_small
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import Changed, Corrupt, GodwitError, Unavailable, refused
from cluster.leases import TokenGate
from cluster.messages import (
    PULLED_MAX_BYTES,
    PULLS_MAX,
    RANGES_MAX,
    SUM_BLOCK_BYTES,
    SUM_BYTES,
    Chunk,
    Failure,
    GetAttr,
    Hole,
    Pulled,
    PullEnd,
    PullHeader,
    PullObject,
    PullObjects,
    SumBlocks,
)
from cluster.rpc.connection import Answer
from cluster.rpc.serving import Replies
from cluster.rpc.session import ManagerSession
from cluster.volume.layout import ObjectRecord

YOUNG_NS = 50_000_000
"""A younger change may be followed by one that leaves no trace: before Linux 6.13 a file's times move in steps of up to 10 ms."""
SMALL_BYTES = 256 * 1024
"""What is not longer goes together with others."""
MANAGER_TIMEOUT_S = 10.0  # for one question about an inode; the target gets its error
INO_MAX = 2**63  # as in the catalog: a signed 64-bit integer


class PullServer:
    """Serves `PullObject`, `PullObjects` and `SumBlocks`."""

    def __init__(
        self, volumes: VolumeTable, session: ManagerSession, gate: TokenGate, examiner: Examiner, *, plain: bool
    ) -> None:
        self._volumes = volumes  # those that are open here
        self._session = session  # asked only when an object is not as requested
        self._gate = gate  # checks seal, age and inode of tokens, without asking anybody
        self._plain = plain  # large contents are sent unencrypted to who takes that
        self._examiner = examiner  # gets every object that cannot be sent as the catalog says

    async def serve(self, request: PullObject | SumBlocks, send: Replies) -> PullEnd:
        """Sends header and chunks and returns the end. Raises `Changed` or `Corrupt`, possibly after some chunks."""
        volume = self._checked(request)
        ranges = request.ranges if isinstance(request, PullObject) else []
        if not are_within(ranges, request.stamp.size):
            raise refused(errno.EINVAL, f"{len(ranges)} parts of inode {request.ino} that are not in order")
        async with self.reading(request, ranges) as reader:
            if isinstance(request, SumBlocks):
                sums = BlockSums(reader)
                await send(PullHeader(sum_bytes(request.stamp.size)))
                await send.bodies(Chunk(), sums.next_body, volume.bulk_io)
            else:
                await send(PullHeader(reader.bytes))
                chunk = Chunk(plain=self._plain and request.takes_plain)
                await send.bodies(chunk, partial(_next_part, reader, takes_holes=request.takes_holes), volume.bulk_io)
            # The record has the digest of the whole, which parts do not show.
            if not ranges:
                require_recorded(reader.record(), request, reader.digest())
            return PullEnd(reader.digest())

    def _checked(self, request: PullObject | SumBlocks) -> LocalVolume:
        """The volume, if that may be asked for."""
        volume = self._volumes.require(request.volume)
        if not 0 < request.ino < INO_MAX or request.stamp.size < 0:
            # Numbers from the wire become a path: checked before.
            raise refused(errno.EINVAL, f"inode {request.ino}, {request.stamp.size} bytes")
        self._gate.check(request.token, request.ino, monotonic_s(), asking_server())
        return volume

    async def serve_many(self, request: PullObjects) -> Answer:
        """All small objects of a request, in one step."""
        pulls = request.pulls
        # Negative sizes are refused one by one below; here they must not hide what the others add up to.
        size = sum(max(0, pull.stamp.size) for pull in pulls)
        if not 0 < len(pulls) <= PULLS_MAX or size > PULLED_MAX_BYTES or len({pull.volume for pull in pulls}) > 1:
            raise refused(errno.EINVAL, f"{len(pulls)} objects at once, of {size} bytes")
        volume = self._volumes.require(pulls[0].volume)
        refusals = [self._refusal_of(pull) for pull in pulls]
        good = [pull for pull, refusal in zip(pulls, refusals, strict=True) if refusal is None]
        # One wait for all, for the youngest of them.
        await _outlast_the_clock_step(max(pull.stamp.ctime_ns for pull in pulls))
        outcomes = await trio.to_thread.run_sync(_read_all, volume, good, limiter=volume.bulk_io)
        for why in (outcome.__cause__ for outcome in outcomes if isinstance(outcome, Corrupt)):
            # In the event loop, not in the thread: the counts of a disk's errors are changed here only.
            if isinstance(why, OSError):
                self._volumes.met(volume.number, why)
        altered = [(pull, outcome) for pull, outcome in zip(good, outcomes, strict=True) if isinstance(outcome, Altered)]
        for pull, found in zip(good, outcomes, strict=True):
            if isinstance(found, Corrupt):
                self._examiner.suspect(ObjectKey(pull.volume, pull.ino), content=True)
        # Side by side: each may wait for an examination, which reads an object.
        explained = iter(await side_by_side(lambda pair: self._explained(*pair), altered))
        read = iter(outcomes)
        results: list[PullEnd | Failure] = []
        contents: list[bytes] = []
        for refusal in refusals:
            # `read` has one outcome for each request without a refusal, in the order of the requests.
            outcome = refusal or next(read)
            if isinstance(outcome, Altered):
                outcome = next(explained)
            if isinstance(outcome, SmallObject):
                results.append(PullEnd(outcome.checksum))
                contents.append(outcome.content)
            else:
                results.append(Failure(outcome.kind, outcome.errno, str(outcome)))
        return Answer(Pulled(results), b"".join(contents))

    def _refusal_of(self, pull: PullObject) -> GodwitError | None:
        try:
            self._checked(pull)
        except GodwitError as error:
            return error
        return None

    @asynccontextmanager
    async def reading(
        self, request: PullObject | SumBlocks, ranges: Sequence[tuple[int, int]] = ()
    ) -> AsyncIterator[ObjectReader]:
        """A reader of an object of this server; what it raises within the block becomes `Changed` or `Corrupt`."""
        volume = self._volumes.require(request.volume)
        # Before the first look: afterwards any change shows in the stamp.
        await _outlast_the_clock_step(request.stamp.ctime_ns)
        try:
            reader = await trio.to_thread.run_sync(_reader_of(volume, request, ranges), limiter=volume.bulk_io)
            try:
                yield reader
            finally:
                # Without an await: it must happen also when this task is cancelled.
                reader.close()
        except Altered as altered:
            raise await self._explained(request, altered) from altered
        except Unreadable as error:
            self._volumes.met(request.volume, error)
            self._examiner.suspect(ObjectKey(request.volume, request.ino), content=True)
            raise _unreadable(request, error) from error
        except Corrupt:
            self._examiner.suspect(ObjectKey(request.volume, request.ino), content=True)
            raise

    async def _explained(self, request: PullObject | SumBlocks, altered: Altered) -> GodwitError:
        what = f"inode {request.ino} on volume {request.volume}, version {request.version}: {altered}"
        if altered.version > request.version:
            # The object itself proves it: no question to the manager, though it may not have that version yet.
            return Changed(f"{what}; version {altered.version} is there now")
        try:
            node = (await self._session.call(GetAttr(request.ino), timeout_s=MANAGER_TIMEOUT_S)).node
        except GodwitError as error:
            # Nobody can say which is right: the target gets why, and tries again.
            return error
        if node.dirty or node.version > request.version:
            return Changed(f"{what}; it is being written")
        try:
            await self._examiner.examine(ObjectKey(request.volume, request.ino))
        except Unavailable as error:
            # Before GodwitError: not known is not the same as damaged.
            return error
        except GodwitError as error:
            return Corrupt(f"{what}; {error}")
        return Changed(f"{what}; it was touched, and is in order")


def _next_part(reader: ObjectReader, *, takes_holes: bool) -> memoryview | Hole | None:
    """What is sent next of an object; None at the end. Blocks."""
    if reader.finished:
        return None
    if takes_holes and (length := reader.skip_hole()):
        return Hole(length)
    return reader.read()


class SmallObject(NamedTuple):
    """The content of a small object, with its digest."""

    content: bytes
    checksum: bytes


def _read_all(volume: LocalVolume, pulls: Sequence[PullObject]) -> list[SmallObject | Altered | Corrupt]:
    """Reads small objects; why those cannot be sent that cannot. Blocks."""
    return [_checked_small(pull, found) for pull, found in zip(pulls, read_small(volume.layout, pulls), strict=True)]


def _checked_small(pull: PullObject, found: Read | Altered | Unreadable) -> SmallObject | Altered | Corrupt:
    if isinstance(found, Altered):
        return found
    if isinstance(found, Unreadable):
        unreadable = _unreadable(pull, found)
        # `raise … from` without raising: `serve_many` looks there for the disk's error.
        unreadable.__cause__ = found
        return unreadable
    try:
        require_recorded(found.record, pull, found.checksum)
    except Corrupt as error:
        return error
    return SmallObject(found.content, found.checksum)


def _unreadable(request: PullObject | SumBlocks, error: Unreadable) -> Corrupt:
    return Corrupt(f"cannot read inode {request.ino} on volume {request.volume}: {error.strerror}")


def are_within(ranges: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether these are parts of *size* bytes, one behind the other, and not too many."""
    end = 0
    for offset, length in ranges:
        if offset < end or length <= 0 or offset + length > size:
            return False
        end = offset + length
    return len(ranges) <= RANGES_MAX


def sum_bytes(size: int) -> int:
    """How long the digests of all blocks of *size* bytes are."""
    return -(-size // SUM_BLOCK_BYTES) * SUM_BYTES


def require_recorded(record: ObjectRecord | None, request: PullObject | SumBlocks, digest: bytes) -> None:
    """Raises `Corrupt` if the object's *record* says that its content has another digest."""
    # A record of another version says nothing of this content.
    if record and record.version == request.version and record.checksum and record.checksum != digest.hex():
        raise Corrupt(
            f"inode {request.ino} on volume {request.volume}, version {request.version}: "
            f"the content's digest is {digest.hex()}, its record says {record.checksum}"
        )


def _reader_of(
    volume: LocalVolume, request: PullObject | SumBlocks, ranges: Sequence[tuple[int, int]]
) -> Callable[[], ObjectReader]:
    path = volume.layout.object_path(request.ino)
    # A snapshot costs an ioctl and a file: for what is read in a moment, checking the stamp is cheaper.
    snapshots = str(volume.layout.staging) if request.stamp.size > SMALL_BYTES else ""
    return lambda: ObjectReader(
        path, request.stamp, ranges=ranges, snapshots=snapshots, is_written=request.is_written, durable=True
    )


async def _outlast_the_clock_step(changed_ns: int) -> None:
    # By the same clock as the file's times. Bounded by YOUNG_NS, since a ctime in the future would be waited for otherwise.
    young_ns = changed_ns + YOUNG_NS - file_time_ns()
    if young_ns > 0:
        await trio.sleep(min(young_ns, YOUNG_NS) / 1e9)
