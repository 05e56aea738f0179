"""The source's side of a copy: a whole object, only if it is what the catalog says it is.

Nothing here writes to the object: even setting its record would change the stamp by which it is known.
"""

import errno

import trio

from agent.reading import Altered, ObjectReader
from agent.volumes import LocalVolume, VolumeTable
from cluster.clock import file_time_ns, monotonic_s
from cluster.errors import Changed, Corrupt, Refused, refused
from cluster.leases import TokenGate
from cluster.messages import Chunk, GetAttr, PullEnd, PullHeader, PullObject
from cluster.rpc import SendReply
from cluster.session import ManagerSession

SETTLED_NS = 50_000_000
"""Before Linux 6.13 a file's times move in steps of up to 10 ms: a second change within a step leaves no trace."""
MANAGER_TIMEOUT_S = 10.0
INO_MAX = 2**63


class PullServer:
    """Serves `PullObject`."""

    def __init__(self, volumes: VolumeTable, session: ManagerSession, gate: TokenGate) -> None:
        self._volumes = volumes
        self._session = session
        self._gate = gate

    async def serve(self, request: PullObject, send: SendReply) -> PullEnd:
        """Sends header and chunks and returns the end. Raises `Changed` or `Corrupt`, possibly after some chunks."""
        volume = self._volumes.require(request.volume)
        if not 0 < request.ino < INO_MAX or request.stamp.size < 0:
            raise refused(errno.EINVAL, f"inode {request.ino}, {request.stamp.size} bytes")
        self._gate.check(request.token, request.ino, monotonic_s())
        await _outlast_the_clock_step(request.stamp.ctime_ns)
        try:
            return await _send_object(volume, request, send)
        except Altered as altered:
            raise await self._explained(request, altered) from altered
        except OSError as error:
            raise Corrupt(f"cannot read inode {request.ino} on volume {request.volume}: {error.strerror}") from error

    async def _explained(self, request: PullObject, altered: Altered) -> Changed | Corrupt | Refused:
        what = f"inode {request.ino} on volume {request.volume}, version {request.version}: {altered}"
        if altered.version > request.version:
            return Changed(f"{what}; version {altered.version} is there now")
        try:
            node = (await self._session.call(GetAttr(request.ino), timeout_s=MANAGER_TIMEOUT_S)).node
        except Refused as error:
            return error
        if node.dirty or node.version > request.version:
            return Changed(f"{what}; it is being written")
        return Corrupt(what)


async def _send_object(volume: LocalVolume, request: PullObject, send: SendReply) -> PullEnd:
    path = volume.layout.object_path(request.ino)

    def start() -> tuple[ObjectReader, bytes]:
        reader = ObjectReader(path, request.stamp)
        try:
            return reader, reader.read()
        except BaseException:
            reader.close()
            raise

    reader, data = await trio.to_thread.run_sync(start, limiter=volume.bulk_io)
    try:
        await send(PullHeader(request.stamp.size), b"")
        if data:
            await send(Chunk(), data)
        while not reader.finished:
            data = await trio.to_thread.run_sync(reader.read, limiter=volume.bulk_io)
            await send(Chunk(), data)
        return PullEnd(_checked_digest(reader, request))
    finally:
        reader.close()


def _checked_digest(reader: ObjectReader, request: PullObject) -> bytes:
    digest = reader.digest()
    record = reader.record()
    if record and record.version == request.version and record.checksum and record.checksum != digest.hex():
        raise Corrupt(
            f"inode {request.ino} on volume {request.volume}, version {request.version}: "
            f"the content's digest is {digest.hex()}, its record says {record.checksum}"
        )
    return digest


async def _outlast_the_clock_step(changed_ns: int) -> None:
    young_ns = changed_ns + SETTLED_NS - file_time_ns()
    if young_ns > 0:
        await trio.sleep(min(young_ns, SETTLED_NS) / 1e9)
