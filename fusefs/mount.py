"""The parts of one mount, put together from the bottom up: a method for each folder.

What a part works with is given to it when it is made. Where two need each other, the one that is made first is given a function
of the other: the session asks this class what to present to a manager, and hands recalls to it.
"""

import logging
import resource
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio

from cluster.config import ServerConfig, credentials_of
from cluster.counters import counter, counters, gauge
from cluster.exporter import serve_metrics
from cluster.faults import faults
from cluster.journal import Journal, journal_owner
from cluster.messages import HeldLocks, MountCounts, Node, OpenInode, Recall, RecordsApplied, Request, Welcome
from cluster.rpc.renewal import renewal_loop
from cluster.rpc.session import ManagerSession
from cluster.tending import TendedTasks, tended
from cluster.trust.identity import Role
from fusefs.caching.alone import Alone
from fusefs.caching.cache import CACHE_LIMITS, CacheLimits, Caching
from fusefs.caching.changes import Changes
from fusefs.caching.held import HeldDirectories
from fusefs.caching.recalls import SHORT_NAMES_S, Recalls
from fusefs.caching.records import Records
from fusefs.caching.tokens import Leases
from fusefs.content.access import Access
from fusefs.content.attributes import Attributes
from fusefs.content.creating import Creator, NewObjects
from fusefs.content.delegations import Delegations
from fusefs.content.disk_threads import DiskWatch, known_disks
from fusefs.content.fencing import Guard
from fusefs.content.files import Files
from fusefs.content.handles import Handles
from fusefs.content.homes import Homes
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.lingering import Lingering, lingering_max
from fusefs.content.open_files import OpenFiles
from fusefs.content.opening import Opener
from fusefs.content.passthrough import Passthrough
from fusefs.content.peers import Peers
from fusefs.content.prepared import PreparedObjects
from fusefs.content.privileges import Privileges
from fusefs.content.reading import Reader
from fusefs.content.settling import DueInodes, Settler
from fusefs.content.syncing import Syncer
from fusefs.handlers.extents import Extents
from fusefs.handlers.overlay import Overlay
from fusefs.handlers.pyfuse import GodwitOperations
from fusefs.handlers.quick import Quick
from fusefs.handlers.quick_changes import QuickChanges
from fusefs.handlers.statx import Statx
from fusefs.handlers.tmpfile import Unnamed
from fusefs.kernel.interrupts import Interrupts
from fusefs.kernel.invalidation import KernelCache
from fusefs.kernel.requests import Handler, Raw, RawRequests
from fusefs.kernel.stream import Bounds, Channel, InitFlag
from fusefs.kernel.told import Told
from fusefs.locks import Locks
from fusefs.names.creating import Creation
from fusefs.names.directories import Directories
from fusefs.names.listings import Listings
from fusefs.names.lookups import Lookups
from fusefs.names.namespace import Namespace
from fusefs.names.open_directories import Opens
from fusefs.names.set_attributes import SetAttributes
from fusefs.names.set_id_bits import SetIdBits
from fusefs.names.whole_directories import WholeDirectories
from fusefs.names.xattrs import Xattrs

log = logging.getLogger(__name__)

KERNEL_REQUESTS = counter("godwit_kernel_requests_total", "Requests that the kernel has made of the mount process.")
DELEGATED_OPENS = counter("godwit_delegated_opens_total", "Opens that were answered without the mount process's Python.")
TOLD_AGAIN = counter("godwit_names_told_again_total", "Lookups and stats that were answered without the mount process's Python.")
RECALLS = counter("godwit_recalls_obeyed_total", "Recalls of leases that the mount has obeyed.")
ALONE = gauge("godwit_held_inodes", "Inodes that the mount may change by itself: those with leases that have not been swept.")
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
        self._caching = Caching(is_written_past=self._is_written_past, limits=limits, told=Told(self._channel))
        self._limits = limits
        self._passthrough = Passthrough(self._channel, unfenced=config.mount.unfenced)
        self._delegations = Delegations(
            self._channel, self._passthrough, self._caching, self._is_sound, self._use_lease, self._has_pages
        )
        self._open_files = OpenFiles(self._due.add, self._delegations)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._lingering = Lingering(self._caching, self._delegations, self._due.add, lingering_max(descriptors))
        self._alone = Alone(self._caching)
        self._make_session()
        self._make_leases()
        self._make_content()
        self._make_names()
        self.operations = self._make_handlers()
        counters.follow(KERNEL_REQUESTS, self._kernel_requests)
        counters.follow(DELEGATED_OPENS, lambda: self._channel.answered_alone()[0])
        counters.follow(TOLD_AGAIN, lambda: self._channel.answered_alone()[1])
        counters.follow(RECALLS, lambda: self._recalls.obeyed)
        counters.follow(CACHED, lambda: len(self._caching.leased()))

    # ------------------------------------------------------------------------------------------------------- making

    def _make_session(self) -> None:
        self._session = ManagerSession(
            managers=self._config.managers,
            state=self._config.state,
            credentials=credentials_of(self._config, Role.MOUNT),
            opens=self._registrations,
            tokens=self._tokens,
            caching=self._caching.leased,
            locks=self._held_locks,
            counts=self._counts,
            counters=counters,
            on_welcome=self._welcomed,
            on_recall=self._recalled,
            unsent=self._has_unsent,
            before=self._before,
        )
        owner = journal_owner(self._config.cluster, self._config.server)
        journal = Journal(owner, self._session.session, self._config.state)
        self._records = Records(self._session, journal, self._applied, self._timeout_s, counters)
        self._held = HeldDirectories(self._session, self._caching, self._alone, self._records, self._timeout_s)
        counters.follow(ALONE, lambda: len(self._alone))
        self._settler = Settler(
            self._session,
            self._held,
            self._open_files,
            self._due,
            self._paths,
            self._lingering,
            self._config.mount,
        )

    def _make_leases(self) -> None:
        session, caching, timeout_s = self._session, self._caching, self._timeout_s
        self._opens = Opens(self._open_files, self._settler.let_go)
        self._recalls = Recalls(session, self._held, caching, self._kernel, self._opens, self._tasks, timeout_s)
        self._changes = Changes(session, self._held, caching, self._recalls, timeout_s)
        watch_flush = self._channel.watch_flush
        self._locks = Locks(session, self._config.server, caching, self._kernel, self._tasks, timeout_s, watch_flush)
        use_of = self._open_files.use_of
        self._leases = Leases(session, caching, self._config.mount.renew_s, timeout_s, use_of, self._locks.check)

    def _make_content(self) -> None:
        session, leases, open_files, timeout_s = self._session, self._leases, self._open_files, self._timeout_s
        self._peers = Peers(session, self._config.server, self._tasks, timeout_s, self._mounted_anew)
        self._attributes = Attributes(session, self._peers, leases, open_files, timeout_s)
        self._numbers = InodeNumbers(session, timeout_s)
        self._homes = Homes(session, self._peers, leases, timeout_s)
        self._reader = Reader(session, self._peers, leases, self._caching, self._homes, timeout_s)
        self._handles = Handles(open_files, self._passthrough, self._peers.mount)
        privileges = Privileges(self._changes)
        self._opener = Opener(session, leases, self._caching, self._homes, open_files, privileges, timeout_s)
        self._prepared = PreparedObjects(session, self._peers, self._numbers, timeout_s)
        objects = NewObjects(session, self._peers, self._numbers, self._prepared, timeout_s)
        self._creator = Creator(objects, self._changes, leases, self._homes, open_files, self._paths)
        self._access = Access(leases, self._homes, self._opener, self._peers)
        syncer = Syncer(session, self._held, self._settler, self._homes, self._access, self._opener, timeout_s)
        self._files = Files(open_files, self._opener, self._access, self._reader, syncer, privileges, self._homes)
        self._guard = Guard(open_files, leases, self._opener.reopen, self._tasks)

    def _make_names(self) -> None:
        session, caching, changes, timeout_s = self._session, self._caching, self._changes, self._timeout_s
        attributes, paths, open_files = self._attributes, self._paths, self._open_files
        whole_directories = WholeDirectories(session, caching, paths, timeout_s)
        lookups = Lookups(session, caching, whole_directories, attributes, paths, timeout_s)
        set_id_bits = SetIdBits(self._channel, lookups, changes, caching, open_files)
        listings = Listings(session, caching, attributes, paths, self._kernel.drop_inode, timeout_s)
        self._directories = Directories(session, self._held, self._opener, self._opens, caching, listings, timeout_s)
        self._overlay = Overlay(
            lookups,
            Creation(changes, self._creator, self._opener, lookups, attributes, self._numbers, paths),
            Namespace(caching, changes, attributes, open_files, self._directories, lookups, paths),
            SetAttributes(changes, caching, lookups, set_id_bits, self._files, paths),
            set_id_bits,
            Xattrs(session, changes, lookups, set_id_bits, caching, open_files, timeout_s),
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
            **{opcode: self._with_handles(handler) for opcode, handler in self._locks.handlers().items()},
            **Statx(overlay.lookups).handlers(),
            **Unnamed(overlay.creation, overlay.handles).handlers(),
        }
        quick = Quick(overlay, released)
        at_once = {**quick.handlers(), **QuickChanges(overlay).handlers()}
        self._raw = RawRequests(at_once, handlers, self._tasks, self._channel.reply, interrupts)
        taken = self._raw.opcodes
        bounds = Bounds(self._lingering.lingering_max, self._limits.cached_max, self._limits.names_max)
        self._channel.prepare(self._wanted(), taken, self._raw.received, operations.dropped, bounds)
        return operations

    def _with_handles(self, handler: Handler) -> Handler:
        """A lock belongs to a handle, and ends with it: so the inode's handles have to be here."""

        async def taken_back(request: Raw) -> bytes:
            self._open_files.take_back(request.ino)
            return await handler(request)

        return taken_back

    def _wanted(self) -> InitFlag:
        """What the kernel is asked for."""
        wanted = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.DIRECT_IO_ALLOW_MMAP | InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
        wanted |= InitFlag.DONT_MASK  # the catalog knows where there is a default ACL
        return wanted | InitFlag.PASSTHROUGH if self._config.mount.passthrough else wanted

    # ------------------------------------------------------------------------------ what is asked of later parts

    def _is_written_past(self, ino: int) -> bool:
        return self._open_files.is_written_past(ino)

    def _is_sound(self, volume: int) -> bool:
        return self._peers.is_known_sound(volume)

    def _has_pages(self, node: Node) -> bool:
        return self._handles.has_pages(node)

    def _use_lease(self, ino: int) -> None:
        self._leases.good(ino)

    # ------------------------------------------------------------------------------------- what the session asks for

    def _registrations(self) -> list[OpenInode]:
        return [opened for opened in self._opens.registrations() if not self._records.is_unknown(opened.ino)]

    def _tokens(self) -> list[bytes]:
        return self._leases.presented()

    def _held_locks(self) -> list[HeldLocks]:
        return self._locks.presented()

    def _recalled(self, recall: Recall) -> None:
        self._recalls.obey(recall)

    def _has_unsent(self) -> bool:
        return self._records.present()

    async def _before(self, request: Request[Any], timeout_s: float) -> None:
        await self._records.before(request, timeout_s)

    def _applied(self, reply: RecordsApplied, asked_s: float) -> None:
        for token in reply.tokens:
            self._leases.granted(token, asked_s, used=False)
        self._held.applied(reply, asked_s)

    def _mounted_anew(self, volume: int) -> None:
        self._recalls.drop_pages(self._open_files.at_home_on(volume))

    def _welcomed(self, welcome: Welcome) -> None:
        self._caching.welcomed(welcome.term)
        self._records.welcomed()
        self._open_files.mark_lost(welcome.lost)
        self._locks.welcomed(welcome)

    def _kernel_requests(self) -> int:
        return self.operations.requests + self._raw.requests

    def _counts(self) -> MountCounts:
        return MountCounts(
            self._kernel_requests(),
            self._session.requests,
            self._recalls.obeyed,
            len(self._caching.leased()),
            self._channel.why_not,
            self._channel.files,
            self._channel.problems + self._records.problems + faults.problems("mount"),
            self._channel.answerer,
            len(self._records),
            self._records.lost,
        )

    # ------------------------------------------------------------------------------------------------------ its life

    def start(self) -> None:
        """Starts all that goes on as long as the nursery does."""
        for loop in self._loops():
            self._nursery.start_soon(tended, loop)
        try_volumes = partial(self._passthrough.try_volumes, self._config.agent.volumes)
        for trial in (try_volumes, self._try_absent_names):
            self._nursery.start_soon(partial(tended, trial, again=False))

    async def _try_absent_names(self) -> None:
        """Until it is known, all names are voided instead."""
        await self.begun()
        try_absent_names = partial(self._kernel.try_absent_names, self._config.mount.mountpoint)
        await trio.to_thread.run_sync(try_absent_names, abandon_on_cancel=True)

    def _loops(self) -> Sequence[Callable[[], Awaitable[None]]]:
        return (
            self._session.run,
            partial(renewal_loop, self._session.credentials, self._session.certify, self._session.show),
            partial(serve_metrics, self._config, self._session.credentials),
            self._records.run,
            self._records.copy_loop,
            self._peers.refresh_loop,
            self._prepared.run,
            self._settler.run,
            self._settler.commit_loop,
            self._settler.commit_synced,
            self._lingering.run,
            self._leases.renew_loop,
            partial(self._recalls.end_loop, self._leases),
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

    async def serving(self) -> None:
        """Returns when programs are answered: it is mounted, and a manager knows it."""
        await self.begun()
        await self._session.introduced()

    def unmounting(self) -> bool:
        """It is about to be unmounted: from now on the kernel is not notified of anything. Whether it is mounted still."""
        return self._channel.unmounting()

    async def drain(self) -> None:
        """Ends all handles, and returns when all that was written is committed."""
        await self._settler.drain()
        await self._records.end()
        await self._prepared.end()

    async def give_back_all(self) -> None:
        """Gives all leases back: nobody has to wait for what this mount was allowed to keep. Raises `GodwitError`."""
        await self._recalls.give_back_all()
