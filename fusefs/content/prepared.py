"""Empty objects that wait for new files: whoever makes a file waits for no disk then, and many are made in one turn of a thread.

They are made while files are, and removed when none has been made for a while. Those of a mount that was killed are removed by
its server's agent (`agent.checking.strays`): no row in the catalog is of them.
"""

import logging
from collections import deque
from typing import NamedTuple

import trio

from cluster.clock import file_time_ns
from cluster.errors import GodwitError, NoSpace
from cluster.messages import Volume
from cluster.rpc.session import ManagerSession
from fusefs.content.disk_threads import known_disks
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.local_object import LocalObject
from fusefs.content.peers import Peers

log = logging.getLogger(__name__)

READY_MAX = 256
READY_MIN = 128  # then more are made: as long as that takes, the others have to last
IDLE_S = 5.0  # without a new file
LOOK_S = 1.0  # how late at most they are removed
STAY_S = 5.0  # on a volume that is not the best one any more: which one that is may change with each file
RETRY_S = 1.0  # after none could be made


class NewObject(NamedTuple):
    """An empty object that no row in the catalog is of yet."""

    ino: int
    volume: int
    here: LocalObject | None  # None if it is at another server
    born_ns: int  # when the file is made, by the clock of the file system that the object is on
    object_ctime_ns: int = 0  # of one that was made before the file


class _Ready(NamedTuple):
    """An object that waits."""

    ino: int
    volume: int
    here: LocalObject
    made_s: float


class PreparedObjects:
    """The objects of one mount that wait, on volumes of this server."""

    def __init__(self, session: ManagerSession, peers: Peers, numbers: InodeNumbers, timeout_s: float) -> None:
        self._session = session
        self._peers = peers
        self._numbers = numbers
        self._timeout_s = timeout_s
        self._ready: deque[_Ready] = deque()  # the oldest first
        self._wanted_s = float("-inf")  # when a file was made last
        self._wake = trio.Event()
        self._is_stopped = False

    def __len__(self) -> int:
        return len(self._ready)

    def take(self) -> NewObject | None:
        """An object where a new file may go; None if none is ready."""
        self._wanted_s = trio.current_time()
        if len(self._ready) <= READY_MIN:
            self._wake.set()
        if not self._ready or not self._peers.takes_new_files(self._ready[0].volume):
            return None
        ino, volume, here, _made_s = self._ready.popleft()
        stamp = here.stamp_in_place()
        # The first to notice that a disk is away: what is written to it from here on would be a file that nobody finds.
        if stamp is None:
            here.close()
            self._wake.set()
            return None
        here.begins_to_change()
        return NewObject(ino, volume, here, file_time_ns(), stamp.ctime_ns)

    def put_back(self, new: NewObject) -> None:
        """Nothing came of the file that was to be made with what `take` has returned, in the same step."""
        assert new.here is not None
        self._ready.appendleft(_Ready(new.ino, new.volume, new.here, trio.current_time()))

    async def run(self) -> None:
        """Makes and removes them until cancelled."""
        while True:
            with trio.move_on_after(LOOK_S):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                await self._look()
            except GodwitError as error:
                log.info("no objects are made in advance: %s", error)
                await trio.sleep(RETRY_S)

    async def _look(self) -> None:
        idle = trio.current_time() - self._wanted_s > IDLE_S
        best = None if idle or self._is_stopped else (await self._peers.homes_for_new_file())[0]
        for _ in range(len(self._ready)):
            ready = self._ready.popleft()
            if ready.here.stamp_in_place() is None:
                ready.here.close()  # once its disk is back, its agent removes it
            elif best is None or not self._may_stay(ready, best):
                ready.here.remove()
            else:
                self._ready.append(ready)
        if best is not None and len(self._ready) <= READY_MIN and self._peers.is_local(best):
            await self._make(best)

    def _may_stay(self, ready: _Ready, best: Volume) -> bool:
        if not self._peers.takes_new_files(ready.volume):
            return False
        return ready.volume == best.volume or trio.current_time() - ready.made_s < STAY_S

    async def _make(self, volume: Volume) -> None:
        inodes = [await self._numbers.take() for _ in range(READY_MAX - len(self._ready))]
        try:
            made = await LocalObject.create_all(volume.path, inodes, self._session, self._timeout_s, impatient=True)
        except NoSpace:
            self._peers.avoid(volume.volume)
            raise
        now = trio.current_time()
        self._ready.extend(_Ready(ino, volume.volume, here, now) for ino, here in zip(inodes, made, strict=True))
        if self._is_stopped:
            self._remove_all()

    def _remove_all(self) -> None:
        while self._ready:
            self._ready.popleft().here.remove()

    async def end(self) -> None:
        """For an orderly stop: returns when there are none any more, and none are made."""
        self._is_stopped = True
        self._remove_all()
        for threads in known_disks():
            await threads.caught_up(self._timeout_s)
