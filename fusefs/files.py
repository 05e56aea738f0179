"""The bytes of files: opening, reading, writing, truncating, syncing; each through the object that is right at the moment."""

import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import trio

from cluster.clock import file_time_ns
from cluster.errors import Fenced, GodwitError, Refused, refused
from cluster.messages import AwaitCopies, Create, CreateObject, CreateUnnamed, Lookup, Node, Open, RemoveXattr, SetAttr, Sync
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching, Seen
from fusefs.caching.changes import Changed, Changes
from fusefs.caching.tokens import Leases
from fusefs.content.attributes import Attributes
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.passthrough import Passthrough
from fusefs.content.peers import Peers
from fusefs.content.settling import Settler
from fusefs.homes import Homes, check_home
from fusefs.objects import Buffer, LocalObject, Object
from fusefs.openfiles import OpenInode, Way
from fusefs.privileges import has_set_id, without_set_id
from fusefs.reading import Reader

log = logging.getLogger(__name__)

R = TypeVar("R")

SECURITY_CAPABILITY = b"security.capability"
CACHED_VERSIONS = 50_000


class KernelPages:
    """Of which version the kernel's cached pages are, for the inodes opened last; bounded.

    The kernel drops pages when it sees another size or mtime; this is for changes that restore both.
    """

    def __init__(self, limit: int = CACHED_VERSIONS) -> None:
        self._limit = limit
        self._versions: OrderedDict[int, int] = OrderedDict()

    def opening(self, node: Node) -> bool:
        """Whether pages from earlier opens may be kept; notes what the coming ones will be of."""
        known = self._versions.pop(node.ino, None)
        if node.dirty:
            return False
        self._versions[node.ino] = node.version
        if len(self._versions) > self._limit:
            self._versions.popitem(last=False)
        return known == node.version


class ToldKernel(NamedTuple):
    """What the kernel is told of a handle: how it is to use it, and whether it may keep the pages that it has. `backing_id`: of
    the object that it reads and writes itself, 0 if it does not."""

    number: int
    way: Way
    keep_pages: bool
    backing_id: int


class Files:
    """The operations of the overlay on open files. All raise `GodwitError`."""

    def __init__(
        self,
        session: ManagerSession,
        peers: Peers,
        settler: Settler,
        attributes: Attributes,
        numbers: InodeNumbers,
        leases: Leases,
        caching: Caching,
        homes: Homes,
        reader: Reader,
        changes: Changes,
        passthrough: Passthrough,
        paths: LastKnownPaths,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._leases = leases
        self._caching = caching
        self._homes = homes
        self._reader = reader
        self._changes = changes
        self._passthrough = passthrough
        self._peers = peers
        self._settler = settler
        self._open_files = settler.open_files
        self._attributes = attributes
        self._numbers = numbers
        self._paths = paths
        self._timeout_s = timeout_s
        self._pages = KernelPages()

    # ---------------------------------------------------------------- opening

    def tell_kernel(self, number: int) -> ToldKernel:
        """What the kernel is told of a new handle; to be answered without an await."""
        handle = self._open_files.handle(number)
        way = self._passthrough.opened(handle)
        backing_id = handle.inode.backing_id if way is Way.PASSED else 0
        return ToldKernel(number, way, self._pages.opening(handle.inode.node), backing_id)

    async def open(self, ino: int, flags: int, uid: int = 0) -> int:
        """A handle for *uid*."""
        write = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        while True:
            state = self._open_files.get(ino) or self._open_files.enter(await self._node(ino))
            async with state.lock:
                if not self._open_files.is_entered(state):
                    continue
                try:
                    return await self._open_locked(state, flags, uid, write=write)
                finally:
                    self._open_files.settle_soon(state)

    async def _node(self, ino: int) -> Node:
        kept = self._caching.node(ino)
        return kept[0] if kept else (await self._homes.ask(ino)).node

    async def _open_locked(self, state: OpenInode, flags: int, uid: int, *, write: bool) -> int:
        state.check()
        if state.node.dirty or (write and not await self._homes.may_be_here(state)):
            await self._homes.reach(state)
        await self._register(state, write=write)
        if write:
            await self._leases.hold(state.ino)  # what was asked for long ago, of a manager that is gone now, may have ended
            await self._homes.reach(state)  # the home may have moved until we were registered, from when on it does not
        else:
            await self._homes.reach_here(state)
        number = self._open_files.open_handle(state, write=write, append=bool(flags & os.O_APPEND))
        if flags & os.O_TRUNC:
            try:
                await self._truncate(state, 0)
                await self._drop_privileges(state, uid)
            except GodwitError:
                self._open_files.release_handle(number)
                raise
        return number

    async def _drop_privileges(self, state: OpenInode, uid: int) -> None:
        """What the kernel does for other changes of content, but leaves to the file system for `O_TRUNC`."""
        if state.caps:
            try:
                await self._changes.apply(RemoveXattr(state.ino, SECURITY_CAPABILITY, file_time_ns()), state.ino)
            except Refused as error:
                if error.errno != errno.ENODATA:
                    raise
            state.caps = False
        if uid == 0:
            return
        if has_set_id(state.node.mode):
            change = SetAttr(state.ino, file_time_ns(), mode=without_set_id(state.node.mode))
            changed = await self._changes.apply(change, state.ino)
            state.node = changed.made

    async def _register(self, state: OpenInode, *, write: bool) -> None:
        if not state.registered or (write and not state.registered_write):
            await self._ask_to_open(state, write=write)
        elif state.readers + state.writers == 0:
            # It lingers, and is what is kept; else the manager says what it is now.
            kept = self._caching.node(state.ino)
            if kept is None:
                await self._ask_to_open(state, write=write)
            else:
                state.saw(kept[0])

    async def _ask_to_open(self, state: OpenInode, *, write: bool) -> None:
        request = Open(state.ino, write or state.registered_write, self._open_files.next_sequence())
        asked_s = trio.current_time()
        opened = await self._session.call(request, timeout_s=self._timeout_s)
        self._leases.granted(opened.token, asked_s)
        # Who writes changes the inode from now on, so that what was kept of it before is out of date.
        allowed = self._caching.changed([state.ino] if request.write else [], opened.grant, asked_s)
        self._caching.keep_node(opened.node, allowed)
        if opened.node.home_epoch != state.node.home_epoch:
            state.moved(opened.node)
        state.registered = True
        state.registered_write |= write
        state.node = opened.node
        state.replicas = opened.replicas
        state.located_version = opened.node.version
        state.caps = opened.caps
        state.sync_copies = opened.sync_copies

    async def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int) -> tuple[int, Seen]:
        """Makes a regular file and opens it; an existing one is opened unless *flags* has `O_EXCL`."""
        with self._changes.under_way(parent):
            while True:
                try:
                    number, made = await self._create(parent, name, mode, uid, gid, append=bool(flags & os.O_APPEND))
                except Refused as error:
                    if error.errno != errno.EEXIST or flags & os.O_EXCL:
                        raise
                    existing = await self._open_existing(parent, name, uid, flags)
                    if existing is not None:
                        return existing
                else:
                    return number, self._changes.seen(made, parent, name)

    async def _open_existing(self, parent: int, name: bytes, uid: int, flags: int) -> tuple[int, Seen] | None:
        """Opens the file whose name was taken; None if it is gone by now."""
        node = (await self._session.call(Lookup(parent, name), timeout_s=self._timeout_s)).node
        if node is None:
            return None
        if not stat.S_ISREG(node.mode):
            raise refused(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EEXIST)
        number = await self.open(node.ino, flags, uid)
        return number, Seen(await self._attributes.live(node))

    async def create_unnamed(self, directory: int, mode: int, uid: int, gid: int, flags: int) -> tuple[int, Seen]:
        """Makes a regular file that has no name yet, as if in *directory*, and opens it."""
        number, made = await self._create(directory, b"", mode, uid, gid, append=bool(flags & os.O_APPEND))
        return number, self._caching.seen(made.made, made.allowed.until_s(made.made.ino))

    async def make_regular(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Seen:
        """mknod(2) of a regular file: a create that is closed at once."""
        number, made = await self._create(parent, name, mode, uid, gid, append=False)
        self._open_files.release_handle(number)
        return self._changes.seen(made, parent, name)

    async def _create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, append: bool) -> tuple[int, Changed]:
        """With an empty *name*, a file that has none."""
        ino = await self._numbers.take()
        volume = await self._peers.home_for_new_file()
        local = self._peers.is_local(volume)
        home: Object | None = None
        if local:
            home = created = LocalObject.create(volume.path, ino, self._session, self._timeout_s)
            now_ns = created.born_ns()
        else:
            now_ns = (await self._peers.call(volume.volume, CreateObject(ino, volume.volume))).content.mtime_ns
        asked_s = trio.current_time()
        try:
            if name:
                made = await self._changes.make(Create(parent, name, ino, mode, uid, gid, 0, now_ns, volume.volume))
            else:
                made = await self._changes.apply(CreateUnnamed(parent, ino, mode, uid, gid, now_ns, volume.volume))
        except Refused:
            if local:
                created.remove()
            raise
        node, (token,) = made.made, made.tokens
        self._leases.granted(token, asked_s)
        if name:
            self._paths.saw(node.ino, parent, name)
        state = self._open_files.enter(node)
        state.home, state.home_epoch = home or self._homes.remote(node), node.home_epoch
        state.registered = state.registered_write = True
        state.caps = False
        state.changed = True
        number = self._open_files.open_handle(state, write=True, append=append)
        try:
            await self._leases.hold(node.ino)
        except GodwitError:
            self._open_files.release_handle(number)
            raise
        return number, made

    def release(self, number: int) -> None:
        """Ends a handle that the kernel gave up. What was written is committed in the background."""
        self._passthrough.released(self._open_files.release_handle(number))

    # ---------------------------------------------------------------- reading

    async def read(self, number: int, offset: int, length: int) -> Buffer:
        """Bytes of the newest content that had been written when the kernel asked for the attributes before this."""
        state = self._open_files.handle(number).inode
        return await self.reading(state, lambda: self._reader.read(state, offset, length))

    async def reading(self, state: OpenInode, act: Callable[[], Awaitable[R]]) -> R:
        """What *act*, which uses the reader, returns; once more if the home turns out to have moved."""
        state.check()
        try:
            return await act()
        except (Fenced, Refused):
            if not await self._homes.has_moved(state):
                raise
        if state.registered_write:
            await self.regain(state, state.home)
        return await act()

    # ---------------------------------------------------------------- writing

    def ino_of(self, number: int) -> int:
        """What a handle is of."""
        return self._open_files.handle(number).inode.ino

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Writes at *offset*, or at the end if the handle was opened with `O_APPEND`; returns how much was written."""
        handle = self._open_files.handle(number)
        return await self.change(
            handle.inode, lambda home: home.write(offset, data, append=handle.append), repeatable=not handle.append
        )

    async def change(self, state: OpenInode, act: Callable[[Object], Awaitable[R]], *, repeatable: bool = True) -> R:
        """What *act*, which changes the content, returns at the home: see `_at_home`."""

        async def changing(home: Object) -> R:
            state.changed = True
            return await act(home)

        return await self._at_home(state, changing, repeatable=repeatable)

    async def _at_home(self, state: OpenInode, act: Callable[[Object], Awaitable[R]], *, repeatable: bool = True) -> R:
        """What *act* returns at the home; if this mount was away meanwhile, at the home that is the right one now.

        What was done at this server's disk when the lease had ended counts only if the home is still there.
        """
        state.check()
        home, epoch = state.home, state.home_epoch
        if home is not None:
            try:
                held = await self._leases.hold_for_content(state.ino)
                check_home(state, held)
                done = await act(home)
            except Fenced as error:
                log.warning("inode %d: %s", state.ino, error)
            else:
                if home.is_remote or trio.current_time() < held.deadline_s:
                    return done
                await self.regain(state, home)
                if state.home_epoch == epoch:
                    return done
                if not repeatable:
                    raise Fenced(f"inode {state.ino} got another home while something was appended at the old one")
        new_home = await self.regain(state, home)
        check_home(state, await self._leases.hold_for_content(state.ino))
        return await act(new_home)

    async def regain(self, state: OpenInode, lost: Object | None) -> Object:
        """The home in the place of *lost*, for an inode that is open for writing here: registered anew, wherever it is now.

        Nothing that was acknowledged is missing there, since a home moves only when all of it is committed.
        """
        async with state.lock:
            state.check()
            if state.home is None or state.home is lost:
                await self._ask_to_open(state, write=True)
            return await self._homes.reach(state)

    async def truncate(self, ino: int, size: int) -> None:
        """Sets the length, whether or not the file is open."""
        state = self._open_files.get(ino)
        if state is not None and state.writers:
            await self.change(state, lambda home: home.truncate(size))
            return
        number = await self.open(ino, os.O_WRONLY)
        try:
            await self.change(self._open_files.handle(number).inode, lambda home: home.truncate(size))
        finally:
            self._open_files.release_handle(number)

    async def _truncate(self, state: OpenInode, size: int) -> None:
        state.check()
        home = await self._homes.reach(state)
        check_home(state, await self._leases.hold_for_content(state.ino))
        state.changed = True
        await home.truncate(size)

    def written_here(self, ino: int) -> LocalObject | None:
        """The object of a file that is open for writing on this mount, if this server is its home."""
        state = self._open_files.get(ino)
        return state.home if state is not None and state.registered_write and isinstance(state.home, LocalObject) else None

    async def set_times(self, node: Node, change: SetAttr) -> Node:
        """The times of a dirty file, where its home is."""
        state = self._open_files.get(node.ino)
        if state is not None and state.home is not None:
            return await state.home.set_times(change)
        volume = await self._peers.volume(node.home_volume)
        if not self._peers.is_local(volume):
            return await self._homes.remote(node).set_times(change)
        home = LocalObject.open_home(volume.path, node.ino, self._session, self._timeout_s)
        try:
            return await home.set_times(change)
        finally:
            home.close()

    async def fsync(self, number: int, *, data_only: bool) -> None:
        """Content and attributes are durable at the home, names in the catalog, and copies on as many servers as the policy says.

        The catalog need not know the new size and times yet: durably, it knows who does (`home` and `dirty`).
        """
        state = self._open_files.handle(number).inode
        state.check()
        if not state.registered_write or state.home is None:
            return
        await self._at_home(state, lambda home: home.sync(data_only=data_only))
        await self._sync_catalog(state)
        if state.sync_copies is None:
            state.sync_copies = (await self._homes.ask(state.ino)).sync_copies
        if state.sync_copies > 1:
            request = AwaitCopies(state.ino, await self._committed(state), state.sync_copies, self._timeout_s)
            await self._session.call(request, timeout_s=self._timeout_s + 1)
        else:
            self._settler.commit_soon(state)

    async def _sync_catalog(self, state: OpenInode) -> None:
        """What anybody changed there of this inode, and this mount of any, is durable: nothing is asked if it was already."""
        known = self._session.changes, self._caching.holding(state.ino)
        if known != state.synced or known[1] is None:
            await self._session.call(Sync(), timeout_s=self._timeout_s)
            state.synced = known

    async def _committed(self, state: OpenInode) -> int:
        """Commits what was written; the version of the catalog."""
        try:
            return await self._commit(state)
        except Fenced:
            await self.regain(state, state.home)
            return await self._commit(state)

    async def _commit(self, state: OpenInode) -> int:
        async with state.lock:
            if state.has_changed():
                await self._settler.commit(state, final=False)
            return state.node.version
