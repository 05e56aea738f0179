"""Finds out whether a damaged object has content that the file lacks.

After a loss of power, blocks of an object are missing, zero, or as they were before. Missing and zero ones are nothing that
anybody wrote; any other block that the file does not have in the same place may be.
"""

import os

from agent.copying.peers import PeerChannels, VolumeDirectory
from agent.copying.tokens import MANAGER_TIMEOUT_S, ReadTokens
from agent.objects.disk_batches import DiskWork
from cluster.errors import GodwitError
from cluster.messages import Locate, Opened, ReadObject
from cluster.rpc.session import ManagerSession
from cluster.rpc.wire import AgentAt

STEP_BYTES = 1024 * 1024  # of one read here and there
BLOCK_BYTES = 4096  # what a loss of power takes: pages, not bytes
READ_TIMEOUT_S = 20.0  # of a peer, for one step


def has_own_block(mine: bytes, theirs: bytes) -> bool:
    """Whether a block of *mine* is neither zero nor in *theirs* at the same place."""
    if theirs.startswith(mine):
        return False
    for start in range(0, len(mine), BLOCK_BYTES):
        block = mine[start : start + BLOCK_BYTES]
        if any(block) and block != theirs[start : start + len(block)]:
            return True
    return False


class Comparer:
    """Compares objects of this server with current replicas elsewhere."""

    def __init__(self, session: ManagerSession, directory: VolumeDirectory, channels: PeerChannels) -> None:
        self._session = session
        self._tokens = ReadTokens(session)
        self._directory = directory
        self._channels = channels

    async def has_own(self, work: DiskWork, descriptor: int, ino: int) -> bool:
        """Whether the object has content of its own; True also if that cannot be found out. Raises `OSError`."""
        size = os.fstat(descriptor).st_size
        try:
            opened: Opened | None = None
            for offset in range(0, size, STEP_BYTES):
                mine = await work.in_thread(os.pread, descriptor, STEP_BYTES, offset)
                # A stretch of zeros is nobody's content, and needs no question to a peer.
                if not any(mine):
                    continue
                if opened is None:
                    # Asked only when there is something to compare.
                    opened = await self._session.call(Locate(ino), timeout_s=MANAGER_TIMEOUT_S)
                if has_own_block(mine, await self._read(opened, ino, offset, len(mine))):
                    return True
        except GodwitError:
            return True
        return False

    async def _read(self, opened: Opened, ino: int, offset: int, length: int) -> bytes:
        """What a current replica has there. Raises `GodwitError`."""
        failure = GodwitError(f"no current replica of inode {ino} can be reached")
        for replica in opened.replicas:
            if replica.stamp is None:
                continue
            request = ReadObject(ino, replica.volume, b"", offset, length, replica.stamp)
            try:
                return await self._exchange(request)
            except GodwitError as error:
                failure = error
        raise failure

    async def _exchange(self, request: ReadObject) -> bytes:
        request = await self._tokens.renewed(request)
        volume = await self._directory.find(request.volume)
        channel = await self._channels.shared(AgentAt.of(volume))
        answer = await channel.exchange(request, timeout_s=READ_TIMEOUT_S)
        return bytes(answer.body)
