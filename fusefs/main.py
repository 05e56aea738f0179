"""The mount process: puts the parts together, mounts, answers the kernel, and unmounts in order."""

import gc
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from cluster.config import ServerConfig
from cluster.errors import GodwitError, Refused
from cluster.messages import MountCounts, Welcome
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.caching.changes import Changes
from fusefs.caching.recalls import SHORT_NAMES_S, Recalls
from fusefs.caching.tokens import Leases
from fusefs.content.attributes import Attributes
from fusefs.content.fencing import Guard
from fusefs.content.inode_numbers import InodeNumbers
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.passthrough import Passthrough
from fusefs.content.peers import Peers
from fusefs.content.settling import Settler
from fusefs.files import Files
from fusefs.handlers.extents import Extents
from fusefs.handlers.pyfuse import GodwitOperations
from fusefs.handlers.quick import Quick
from fusefs.handlers.statx import Statx
from fusefs.homes import Homes
from fusefs.kernel.invalidation import KernelCache
from fusefs.kernel.requests import RawRequests
from fusefs.kernel.stream import Channel, InitFlag
from fusefs.locks import Locks
from fusefs.names.listings import Directories
from fusefs.names.open_directories import Opens
from fusefs.namespace import Namespace
from fusefs.reading import Reader
from fusefs.unnamed import Unnamed

log = logging.getLogger(__name__)

MIN_TASKS = 8
MAX_TASKS = 256
DRAIN_TIMEOUT_S = 10.0
GC_THRESHOLD = 50_000  # objects; the interpreter's default is 700
GIVE_BACK_TIMEOUT_S = 2.0
READ_AHEAD_KIB = 2048


async def run_mount(config: ServerConfig, until: Callable[[], Awaitable[None]]) -> None:
    """Mounts the namespace and serves it until *until* returns or it is unmounted; what was closed is committed before it
    ends."""
    # What is kept are many small objects without cycles: looking through them again and again would cost more than it frees.
    gc.set_threshold(GC_THRESHOLD)
    background = trio.CancelScope(shield=True)
    with _only_mount(config):
        await _run(config, until, background)


async def _run(config: ServerConfig, until: Callable[[], Awaitable[None]], background: trio.CancelScope) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_after, until, nursery.cancel_scope)
        tasks = await nursery.start(_run_background, background)
        try:
            mount = _put_together(config, tasks)
            try:
                async with _mounted(mount, config):
                    tasks.start_soon(_set_read_ahead, mount.channel, config.mount.mountpoint)
                    try:
                        await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
                    finally:
                        await _drain(mount.settler, background)
            finally:
                await _give_back(mount.recalls, background)
        finally:
            background.cancel()
        nursery.cancel_scope.cancel()


@contextmanager
def _only_mount(config: ServerConfig) -> Iterator[None]:
    """Makes sure that this is the server's only mount process. Raises `Refused` while there is another.

    So the manager may take the leases of the mount that was there before for ended: its process is dead. An abstract
    socket's name is free again as soon as its process has ended, however it did.
    """
    name = f"godwit/{config.cluster}/{config.server}/mount"
    with socket.socket(socket.AF_UNIX) as held:
        try:
            held.bind(f"\0{name}")
        except OSError as error:
            raise Refused(f"a mount of {config.server} runs already on this machine (it has the socket @{name})") from error
        yield


async def _cancel_after(until: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await until()
    scope.cancel()


async def _run_background(scope: trio.CancelScope, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Holds the tasks that must go on after the order to stop, until what was closed is committed."""
    try:
        with scope:
            async with trio.open_nursery() as nursery:
                task_status.started(nursery)
                await trio.sleep_forever()
    finally:
        scope.cancel()


async def _drain(settler: Settler, background: trio.CancelScope) -> None:
    if background.cancel_called:
        return
    with trio.move_on_after(DRAIN_TIMEOUT_S, shield=True) as scope:
        await settler.drain()
    if scope.cancelled_caught:
        log.warning("stopping with files that are not committed yet; this server's agent will commit them")


async def _give_back(recalls: Recalls, background: trio.CancelScope) -> None:
    """Nothing is mounted any more: nobody has to wait for what this mount was allowed to keep."""
    if background.cancel_called:
        return
    with trio.move_on_after(GIVE_BACK_TIMEOUT_S, shield=True):
        try:
            await recalls.give_back_all()
        except GodwitError as error:
            log.warning("leases were not given back, they end by themselves: %s", error)


@dataclass(frozen=True)
class _Mount:
    """What the entry works with."""

    operations: GodwitOperations
    settler: Settler
    recalls: Recalls
    caching: Caching
    kernel: KernelCache
    channel: Channel


def _put_together(config: ServerConfig, nursery: trio.Nursery) -> _Mount:
    """The parts of a mount, their background tasks started in *nursery*."""
    timeout_s = config.mount.request_timeout_s
    paths, caching, channel = LastKnownPaths(), Caching(), Channel()
    kernel = KernelCache(channel)

    def welcomed(welcome: Welcome) -> None:
        caching.welcomed(welcome.term)
        settler.open_files.mark_lost(welcome.lost)
        locks.welcomed(welcome)

    def counts() -> MountCounts:
        requests = operations.requests + raw.requests
        cached = len(caching.leased())
        told = (channel.why_not, channel.files, channel.problems)
        return MountCounts(requests, session.requests, recalls.obeyed, cached, *told)

    session = ManagerSession(
        managers=config.managers,
        cluster=config.cluster,
        server=config.server,
        role="mount",
        opens=lambda: opens.registrations(),
        tokens=lambda: leases.presented(),
        caching=caching.leased,
        locks=lambda: locks.presented(),
        counts=counts,
        on_welcome=welcomed,
        on_recall=lambda recall: recalls.obey(recall),
    )
    settler = Settler(session, caching, paths, timeout_s, config.mount.commit_s)
    caching.is_written_past = settler.open_files.is_written_past
    opens = Opens(settler.open_files, settler.let_go)
    recalls = Recalls(session, caching, kernel, opens, nursery, timeout_s)
    changes = Changes(session, caching, recalls, timeout_s)
    peers = Peers(session, config.server, nursery, timeout_s)
    locks = Locks(session, config.server, caching, kernel, nursery, timeout_s, channel.watch_flush)
    leases = Leases(session, caching, config.mount.renew_s, timeout_s, settler.open_files.use_of, locks.check)
    attributes = Attributes(session, peers, leases, settler.open_files, timeout_s)
    numbers = InodeNumbers(session, timeout_s)
    homes = Homes(session, peers, leases, timeout_s)
    reader = Reader(session, peers, leases, caching, homes, timeout_s)
    passthrough = Passthrough(channel, unfenced=config.mount.unfenced)
    files = Files(
        session, peers, settler, attributes, numbers, leases, caching, homes, reader, changes, passthrough, paths, timeout_s
    )
    directories = Directories(session, files, opens, caching, attributes, paths, kernel.drop_inode, timeout_s)
    namespace = Namespace(
        session, caching, changes, attributes, settler.open_files, files, directories, numbers, channel, paths, timeout_s
    )
    guard = Guard(settler.open_files, leases, files.regain, nursery)
    operations = GodwitOperations(namespace, files, directories, channel, locks.released)
    extents = Extents(files, settler.open_files, homes, reader, kernel.drop_inode)
    quick, statx, unnamed = Quick(namespace, files, directories, locks.released), Statx(namespace), Unnamed(files)
    handlers = {**extents.handlers(), **locks.handlers(), **statx.handlers(), **unnamed.handlers()}
    raw = RawRequests(quick.handlers(), handlers, nursery, channel.reply)
    channel.prepare(_wanted(config), raw.opcodes, raw.received)
    loops = (
        peers.refresh_loop,
        settler.run,
        settler.commit_loop,
        settler.commit_synced,
        settler.lingering.run,
        leases.renew_loop,
        recalls.end_loop,
        directories.register_loop,
        guard.run,
        locks.expire_loop,
        locks.wake_loop,
    )
    for task in (session.run, *loops):
        nursery.start_soon(task)
    nursery.start_soon(passthrough.try_volumes, config.agent.volumes)
    return _Mount(operations, settler, recalls, caching, kernel, channel)


def _wanted(config: ServerConfig) -> InitFlag:
    """What the kernel is asked for."""
    wanted = InitFlag.HANDLE_KILLPRIV_V2 | InitFlag.DIRECT_IO_ALLOW_MMAP | InitFlag.POSIX_LOCKS | InitFlag.FLOCK_LOCKS
    return wanted | InitFlag.PASSTHROUGH if config.mount.passthrough else wanted


@asynccontextmanager
async def _mounted(mount: _Mount, config: ServerConfig) -> AsyncIterator[None]:
    options = {
        "default_permissions",
        "allow_other",
        "dev",
        "suid",
        f"fsname=godwit:{config.cluster}",
        "subtype=godwit",
    }
    mountpoint = config.mount.mountpoint
    pyfuse3.init(mount.operations, mountpoint, options)
    mount.channel.mounted()
    mount.kernel.mounted()
    if not mount.kernel.can_void_names:
        mount.caching.limit_names(SHORT_NAMES_S)
        log.info("this kernel keeps names for %g s at a time: Linux 6.16 and later keep them for a whole lease", SHORT_NAMES_S)
    log.info("mounted %s", mountpoint)
    try:
        yield
    finally:
        mount.channel.unmounting()
        pyfuse3.close(unmount=True)
        log.info("unmounted %s", mountpoint)


async def _set_read_ahead(channel: Channel, mountpoint: str) -> None:
    """Lets the kernel ask for larger pieces of a file that is read in sequence than its default of 128 KiB.

    That has to wait until FUSE_INIT has been answered, which sets the value back. The device number comes from mountinfo:
    `stat` on the mount would wait for this very process.
    """
    await channel.begun.wait()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == mountpoint.replace(" ", "\\040"):
            try:
                Path(f"/sys/class/bdi/{fields[2]}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
            except OSError as error:
                log.info("read-ahead stays at the kernel's default: %s", error)
