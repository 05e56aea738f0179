"""The parts of one mount, put together from the bottom up: a method for each folder.

What a part works with is given to it when it is made. Where two need each other, the one that is made first is given a function
of the other: the session asks this class what to present to a manager, and hands recalls to it.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from cluster.config import ServerConfig
from cluster.counters import counter, counters, gauge
from cluster.faults import faults
from cluster.messages import HeldLocks, MountCounts, OpenInode, Recall, Welcome
from cluster.rpc.session import ManagerSession
from cluster.tending import TendedTasks, tended
from fusefs.caching.cache import CACHE_LIMITS, CacheLimits, Caching
from fusefs.caching.changes import Changes
from fusefs.caching.recalls import SHORT_NAMES_S, Recalls
from fusefs.caching.tokens import Leases
from fusefs.content.access import Access
from fusefs.content.attributes import Attributes
from fusefs.content.creating import Creator, NewObjects
from fusefs.content.disk_threads import DiskWatch, known_disks
from fusefs.content.fencing import Guard
from fusefs.content.files import Files
from fusefs.content.handles import Handles
from fusefs.content.homes import Homes
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.open_files import OpenFiles
from fusefs.content.opening import Opener
from fusefs.content.passthrough import Passthrough
from fusefs.content.peers import Peers
from fusefs.content.privileges import Privileges
from fusefs.content.reading import Reader
from fusefs.content.settling import DueInodes, Settler
from fusefs.content.syncing import Syncer
from fusefs.handlers.extents import Extents
from fusefs.handlers.overlay import Overlay
from fusefs.handlers.pyfuse import GodwitOperations
from fusefs.handlers.quick import Quick
from fusefs.handlers.statx import Statx
from fusefs.handlers.tmpfile import Unnamed
from fusefs.kernel.interrupts import Interrupts
from fusefs.kernel.invalidation import KernelCache
from fusefs.kernel.requests import RawRequests
from fusefs.kernel.stream import Channel, InitFlag
from fusefs.locks import Locks
from fusefs.names.creating import Creation
from fusefs.names.directories import Directories
from fusefs.names.listings import Listings
from fusefs.names.lookups import Lookups
from fusefs.names.namespace import Namespace
from fusefs.names.open_directories import Opens
from fusefs.names.set_attributes import SetAttributes
from fusefs.names.set_id_bits import SetIdBits
from fusefs.names.xattrs import Xattrs

log = logging.getLogger(__name__)

KERNEL_REQUESTS = counter("godwit_kernel_requests_total", "Requests that the kernel has made of the mount process.")
RECALLS = counter("godwit_recalls_obeyed_total", "Recalls of leases that the mount has obeyed.")
CACHED = gauge("godwit_cached_inodes", "Inodes that the mount holds a lease to cache.")


class Mount:
    """All parts. Their tasks run in *nursery*, which must outlast the mount: what was closed is committed in it."""

    def __init__(self, config: ServerConfig, nursery: trio.Nursery, limits: CacheLimits = CACHE_LIMITS) -> None:
        self._config = config
        self._nursery = nursery
        self._tasks = TendedTasks(nursery)
        self._timeout_s = config.mount.request_timeout_s
        self._channel = Channel()  # prepared last, when there are handlers; nothing comes before it is mounted
        self._kernel = KernelCache(self._channel)
        self._paths = LastKnownPaths()
        # Both are asked by parts that the session needs before there is anything to settle.
        self._due = DueInodes()
        self._open_files = OpenFiles(self._due.add)
        self._caching = Caching(is_written_past=self._open_files.is_written_past, limits=limits)
        self._make_session()
        self._make_leases()
        self._make_content()
        self._make_names()
        self.operations = self._make_handlers()
        counters.follow(KERNEL_REQUESTS, lambda: self.operations.requests + self._raw.requests)
        counters.follow(RECALLS, lambda: self._recalls.obeyed)
        counters.follow(CACHED, lambda: len(self._caching.leased()))

    # ------------------------------------------------------------------------------------------------------- making

    def _make_session(self) -> None:
        self._session = ManagerSession(
            managers=self._config.managers,
            state=self._config.state,
            cluster=self._config.cluster,
            server=self._config.server,
            role="mount",
            opens=self._registrations,
            tokens=self._tokens,
            caching=self._caching.leased,
            locks=self._held_locks,
            counts=self._counts,
            counters=counters,
            on_welcome=self._welcomed,
            on_recall=self._recalled,
        )
        self._settler = Settler(
            self._session,
            self._caching,
            self._open_files,
            self._due,
            self._paths,
            self._timeout_s,
            self._config.mount.commit_s,
        )

    def _make_leases(self) -> None:
        session, caching, timeout_s = self._session, self._caching, self._timeout_s
        self._opens = Opens(self._open_files, self._settler.let_go)
        self._recalls = Recalls(session, caching, self._kernel, self._opens, self._tasks, timeout_s)
        self._changes = Changes(session, caching, self._recalls, timeout_s)
        watch_flush = self._channel.watch_flush
        self._locks = Locks(session, self._config.server, caching, self._kernel, self._tasks, timeout_s, watch_flush)
        use_of = self._open_files.use_of
        self._leases = Leases(session, caching, self._config.mount.renew_s, timeout_s, use_of, self._locks.check)

    def _make_content(self) -> None:
        session, leases, open_files, timeout_s = self._session, self._leases, self._open_files, self._timeout_s
        self._peers = Peers(session, self._config.server, self._tasks, timeout_s)
        self._attributes = Attributes(session, self._peers, leases, open_files, timeout_s)
        self._numbers = InodeNumbers(session, timeout_s)
        self._homes = Homes(session, self._peers, leases, timeout_s)
        self._reader = Reader(session, self._peers, leases, self._caching, self._homes, timeout_s)
        self._passthrough = Passthrough(self._channel, unfenced=self._config.mount.unfenced)
        self._handles = Handles(open_files, self._passthrough)
        privileges = Privileges(self._changes)
        self._opener = Opener(session, leases, self._caching, self._homes, open_files, privileges, timeout_s)
        objects = NewObjects(session, self._peers, self._numbers, timeout_s)
        self._creator = Creator(objects, self._changes, leases, self._homes, open_files, self._paths)
        self._access = Access(leases, self._homes, self._opener, self._peers)
        syncer = Syncer(session, self._caching, self._settler, self._homes, self._access, self._opener, timeout_s)
        self._files = Files(open_files, self._opener, self._access, self._reader, syncer, privileges, self._homes)
        self._guard = Guard(open_files, leases, self._opener.reopen, self._tasks)

    def _make_names(self) -> None:
        session, caching, changes, timeout_s = self._session, self._caching, self._changes, self._timeout_s
        attributes, paths, open_files = self._attributes, self._paths, self._open_files
        lookups = Lookups(session, caching, attributes, paths, timeout_s)
        set_id_bits = SetIdBits(self._channel, lookups, changes, caching, open_files)
        listings = Listings(session, caching, attributes, paths, self._kernel.drop_inode, timeout_s)
        self._directories = Directories(session, self._opener, self._opens, caching, listings, timeout_s)
        self._overlay = Overlay(
            lookups,
            Creation(changes, self._creator, self._opener, lookups, attributes, self._numbers, paths),
            Namespace(caching, changes, attributes, open_files, self._directories, lookups, paths),
            SetAttributes(changes, caching, lookups, set_id_bits, self._files),
            set_id_bits,
            Xattrs(session, changes, lookups, set_id_bits, open_files, timeout_s),
            self._directories,
            self._opener,
            self._handles,
            self._files,
        )

    def _make_handlers(self) -> GodwitOperations:
        """Those of pyfuse3; the others are handed to the channel."""
        overlay, released = self._overlay, self._locks.released
        interrupts = Interrupts(self._channel, self._tasks, self._recalls.forget)
        operations = GodwitOperations(overlay, self._channel, interrupts, released)
        handlers = {
            **Extents(self._access, self._open_files, self._homes, self._reader, self._kernel.drop_inode).handlers(),
            **self._locks.handlers(),
            **Statx(overlay.lookups).handlers(),
            **Unnamed(overlay.creation, overlay.handles).handlers(),
        }
        quick = Quick(overlay, released)
        self._raw = RawRequests(quick.handlers(), handlers, self._tasks, self._channel.reply, interrupts)
        self._channel.prepare(self._wanted(), self._raw.opcodes, self._raw.received, operations.dropped)
        return operations

    def _wanted(self) -> InitFlag:
        """What the kernel is asked for."""
        wanted = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.DIRECT_IO_ALLOW_MMAP | InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
        wanted |= InitFlag.DONT_MASK  # the catalog knows where there is a default ACL
        return wanted | InitFlag.PASSTHROUGH if self._config.mount.passthrough else wanted

    # ------------------------------------------------------------------------------------- what the session asks for

    def _registrations(self) -> list[OpenInode]:
        return self._opens.registrations()

    def _tokens(self) -> list[bytes]:
        return self._leases.presented()

    def _held_locks(self) -> list[HeldLocks]:
        return self._locks.presented()

    def _recalled(self, recall: Recall) -> None:
        self._recalls.obey(recall)

    def _welcomed(self, welcome: Welcome) -> None:
        self._caching.welcomed(welcome.term)
        self._open_files.mark_lost(welcome.lost)
        self._locks.welcomed(welcome)

    def _counts(self) -> MountCounts:
        return MountCounts(
            self.operations.requests + self._raw.requests,
            self._session.requests,
            self._recalls.obeyed,
            len(self._caching.leased()),
            self._channel.why_not,
            self._channel.files,
            self._channel.problems + faults.problems("mount"),
        )

    # ------------------------------------------------------------------------------------------------------ its life

    def start(self) -> None:
        """Starts all that goes on as long as the nursery does."""
        for loop in self._loops():
            self._nursery.start_soon(tended, loop)
        try_volumes = partial(self._passthrough.try_volumes, self._config.agent.volumes)
        self._nursery.start_soon(partial(tended, try_volumes, again=False))

    def _loops(self) -> Sequence[Callable[[], Awaitable[None]]]:
        return (
            self._session.run,
            self._peers.refresh_loop,
            self._settler.run,
            self._settler.commit_loop,
            self._settler.commit_synced,
            self._settler.lingering.run,
            self._leases.renew_loop,
            self._recalls.end_loop,
            self._directories.register_loop,
            self._guard.run,
            self._locks.expire_loop,
            self._locks.wake_loop,
            DiskWatch(known_disks, self._nursery).run,
        )

    def mounted(self) -> None:
        """The kernel has mounted it, and has not asked anything yet."""
        self._channel.mounted()
        self._kernel.mounted()
        if not self._kernel.can_void_names:
            self._caching.limit_names(SHORT_NAMES_S)
            why = "Linux 6.16 and later keep them for a whole lease"
            log.info("this kernel keeps names for %g s at a time: %s", SHORT_NAMES_S, why)

    async def begun(self) -> None:
        """Returns when FUSE_INIT has been answered."""
        await self._channel.begun.wait()

    def unmounting(self) -> bool:
        """It is about to be unmounted: from now on the kernel is not notified of anything. Whether it is mounted still."""
        return self._channel.unmounting()

    async def drain(self) -> None:
        """Ends all handles, and returns when all that was written is committed."""
        await self._settler.drain()

    async def give_back_all(self) -> None:
        """Gives all leases back: nobody has to wait for what this mount was allowed to keep. Raises `GodwitError`."""
        await self._recalls.give_back_all()
