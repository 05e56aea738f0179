"""The mount process: puts the parts together, mounts, answers the kernel, and unmounts in order."""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pyfuse3
import trio

from cluster.config import ServerConfig
from cluster.errors import Refused
from cluster.messages import Welcome
from cluster.session import ManagerSession
from fusefs.adapter import GodwitOperations
from fusefs.attributes import Attributes
from fusefs.directories import Directories
from fusefs.files import Files
from fusefs.inodes import InodeNumbers
from fusefs.leases import Leases
from fusefs.namespace import Namespace
from fusefs.paths import LastKnownPaths
from fusefs.peers import Peers
from fusefs.settling import Settler

log = logging.getLogger(__name__)

MIN_TASKS = 8
MAX_TASKS = 256
DRAIN_TIMEOUT_S = 10.0
READ_AHEAD_KIB = 1024


async def run_mount(config: ServerConfig, until: Callable[[], Awaitable[None]]) -> None:
    """Mounts the namespace and serves it until *until* returns or it is unmounted; what was closed is committed before it
    ends."""
    background = trio.CancelScope(shield=True)
    with _only_mount(config):
        await _run(config, until, background)


async def _run(config: ServerConfig, until: Callable[[], Awaitable[None]], background: trio.CancelScope) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_after, until, nursery.cancel_scope)
        tasks = await nursery.start(_run_background, background)
        try:
            operations, settler = _put_together(config, tasks)
            async with _mounted(operations, config):
                try:
                    await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
                finally:
                    await _drain(settler, background)
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


def _put_together(config: ServerConfig, nursery: trio.Nursery) -> tuple[GodwitOperations, Settler]:
    """The parts of a mount, their background tasks started in *nursery*."""
    timeout_s = config.mount.request_timeout_s
    paths = LastKnownPaths()

    def welcomed(welcome: Welcome) -> None:
        settler.open_files.mark_lost(welcome.lost)

    session = ManagerSession(
        managers=config.managers,
        cluster=config.cluster,
        server=config.server,
        role="mount",
        opens=lambda: settler.open_files.registrations(),
        tokens=lambda: leases.presented(),
        on_welcome=welcomed,
    )
    settler = Settler(session, paths, timeout_s, config.mount.commit_s)
    peers = Peers(session, config.server, nursery, timeout_s)
    leases = Leases(session, config.mount.renew_s, timeout_s, settler.open_files.use_of)
    attributes = Attributes(session, peers, leases, settler.open_files, timeout_s)
    numbers = InodeNumbers(session, timeout_s)
    files = Files(session, peers, settler, attributes, numbers, leases, paths, timeout_s)
    namespace = Namespace(session, attributes, settler.open_files, files, numbers, paths, timeout_s)
    directories = Directories(session, files, attributes, paths, timeout_s)
    for task in (session.run, peers.refresh_loop, settler.run, settler.commit_loop, leases.renew_loop):
        nursery.start_soon(task)
    return GodwitOperations(namespace, files, directories), settler


@asynccontextmanager
async def _mounted(operations: GodwitOperations, config: ServerConfig) -> AsyncIterator[None]:
    options = {
        "default_permissions",
        "allow_other",
        "dev",
        "suid",
        f"fsname=godwit:{config.cluster}",
        "subtype=godwit",
    }
    mountpoint = config.mount.mountpoint
    pyfuse3.init(operations, mountpoint, options)
    _set_read_ahead(mountpoint)
    log.info("mounted %s", mountpoint)
    try:
        yield
    finally:
        pyfuse3.close(unmount=True)
        log.info("unmounted %s", mountpoint)


def _set_read_ahead(mountpoint: str) -> None:
    """Lets the kernel ask for larger pieces of a file that is read in sequence than its default of 128 KiB.

    The device number comes from mountinfo: `stat` on the mount would wait for this very process.
    """
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == mountpoint.replace(" ", "\\040"):
            try:
                Path(f"/sys/class/bdi/{fields[2]}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
            except OSError as error:
                log.info("read-ahead stays at the kernel's default: %s", error)
