"""New files: first the empty object, on the best volume that takes it, then the row and the name in the catalog.

In this order, so that no file is in the catalog that has no object. An object without a row, if the mount dies in between, is set
aside by its server's agent.
"""

import logging
from collections.abc import Awaitable

import trio

from cluster.errors import GodwitError, Refused
from cluster.messages import Create, CreateObject, CreateUnnamed, Volume
from cluster.rpc.session import ManagerSession
from fusefs.caching.changes import Changed, Changes
from fusefs.caching.tokens import Leases
from fusefs.content.homes import Homes
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.local_object import LocalObject
from fusefs.content.open_files import OpenFiles
from fusefs.content.peers import Peers
from fusefs.content.prepared import NewObject, PreparedObjects

log = logging.getLogger(__name__)


class NewObjects:
    """Makes objects."""

    def __init__(
        self, session: ManagerSession, peers: Peers, numbers: InodeNumbers, prepared: PreparedObjects, timeout_s: float
    ) -> None:
        self._session = session
        self._peers = peers
        self._numbers = numbers
        self._prepared = prepared
        self._timeout_s = timeout_s

    async def make(self) -> NewObject:
        """An empty object on the first volume that takes it. Raises the last failure if none does."""
        if (ready := self._prepared.take()) is not None:
            return ready
        ino = await self._numbers.take()
        failure: GodwitError | None = None
        volumes = await self._peers.homes_for_new_file()
        for volume in volumes:
            try:
                return await self._make_on(volume, ino, impatient=volume is not volumes[-1])
            except GodwitError as error:
                failure = error
                # The same number is used on the next volume: an object that was made here after all has no row.
                self._peers.avoid(volume.volume)
                log.warning("a new file gets its home elsewhere: volume %d of %s: %s", volume.volume, volume.server, error)
        assert failure is not None
        raise failure

    def ready(self) -> NewObject | None:
        """As `make`, without waiting; None if that cannot be done."""
        return self._prepared.take()

    def put_back(self, new: NewObject) -> None:
        """Nothing came of the file that was to be made with what `ready` has returned, in the same step."""
        self._prepared.put_back(new)

    async def _make_on(self, volume: Volume, ino: int, *, impatient: bool) -> NewObject:
        if self._peers.is_local(volume):
            here = await LocalObject.create(volume.path, ino, self._session, self._timeout_s, impatient=impatient)
            return NewObject(ino, volume.volume, here, here.born_ns())
        made = await self._peers.call(volume.volume, CreateObject(ino, volume.volume))
        return NewObject(ino, volume.volume, None, made.content.mtime_ns)


class Creator:
    """Makes regular files, and opens them: for writing, since their creator may write whatever their mode says."""

    def __init__(
        self,
        objects: NewObjects,
        changes: Changes,
        leases: Leases,
        homes: Homes,
        open_files: OpenFiles,
        paths: LastKnownPaths,
    ) -> None:
        self._objects = objects
        self._changes = changes
        self._leases = leases
        self._homes = homes
        self._open_files = open_files
        self._paths = paths

    async def create(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, flags: int
    ) -> tuple[int, Changed]:
        """A handle for a new file, and what was changed. Raises `GodwitError`; EEXIST if there is something of that name."""
        new = await self._objects.make()
        asked_s = trio.current_time()
        made = await _made(new, self._changes.make(_create(new, parent, name, mode, umask, uid, gid)))
        self._paths.note(new.ino, parent, name)
        return await self._open(new, made, asked_s, flags), made

    def create_known(
        self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int, flags: int
    ) -> tuple[int, Changed] | None:
        """As `create`, without a task; None, and nothing has changed, if somebody has to be asked."""
        # Asked first: an object that is taken for nothing costs a look at its disk.
        new = self._objects.ready() if self._changes.is_alone(parent) else None
        if new is None:
            return None
        made = self._changes.make_known(_create(new, parent, name, mode, umask, uid, gid))
        if made is None:
            self._objects.put_back(new)
            return None
        self._paths.note(new.ino, parent, name)
        return self._enter(new, made, trio.current_time(), flags), made

    async def create_unnamed(self, directory: int, mode: int, umask: int, uid: int, gid: int, flags: int) -> tuple[int, Changed]:
        """As `create`, a file that has no name yet, as if in *directory*."""
        new = await self._objects.make()
        asked_s = trio.current_time()
        create = CreateUnnamed(directory, new.ino, mode, uid, gid, new.born_ns, new.volume, umask, new.object_ctime_ns)
        made = await _made(new, self._changes.apply(create))
        return await self._open(new, made, asked_s, flags), made

    async def make(self, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int) -> Changed:
        """mknod(2) of a regular file: one that is closed at once."""
        number, made = await self.create(parent, name, mode, umask, uid, gid, 0)
        self._open_files.release_handle(number)
        return made

    async def _open(self, new: NewObject, made: Changed, asked_s: float, flags: int) -> int:
        """No other await since the manager's answer: it counts the inode as open here, and nobody else would close it."""
        number = self._enter(new, made, asked_s, flags)
        # The answer may have come so late that the lease which it brought has ended.
        try:
            await self._leases.hold(new.ino)
        except GodwitError:
            self._open_files.release_handle(number)
            raise
        return number

    def _enter(self, new: NewObject, made: Changed, asked_s: float, flags: int) -> int:
        """A handle for a file that was just made."""
        if made.tokens:  # of the transaction that made it: no request of its own
            self._leases.granted(made.tokens[0], asked_s)
        else:
            self._leases.made_here(made.made, made.permit.deadline_s)
        state = self._open_files.enter(made.made)
        state.created(new.here or self._homes.remote(made.made))
        return self._open_files.open_handle(state, write=True, flags=flags)


def _create(new: NewObject, parent: int, name: bytes, mode: int, umask: int, uid: int, gid: int) -> Create:
    return Create(
        parent, name, new.ino, mode, uid, gid, 0, new.born_ns, new.volume, umask=umask, object_ctime_ns=new.object_ctime_ns
    )


async def _made(new: NewObject, change: Awaitable[Changed]) -> Changed:
    """What the catalog has made of a new object, which is removed if it is refused.

    Only what the catalog has refused is certainly not in it: an object whose create was not answered stays.
    """
    try:
        return await change
    except Refused:
        if new.here is not None:
            new.here.remove()
        raise
