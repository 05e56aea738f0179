"""The mount process: mounts, answers the kernel, and stops in order."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from cluster.config import ServerConfig
from cluster.errors import GodwitError, error_text
from cluster.mounted import uppermost
from cluster.mountpoint import detach_by_force, shield
from cluster.runtime import MOUNT_LOCKS, mount_lock, only_process
from cluster.service import SERVICE
from cluster.tending import tended
from fusefs.caching.cache import CACHE_LIMITS, CacheLimits
from fusefs.mount import Mount

log = logging.getLogger(__name__)

MIN_TASKS = 8  # of pyfuse3, waiting for requests
MAX_TASKS = 768  # as long as there is one more, it can be read that a waiting program is to end
DRAIN_TIMEOUT_S = 10.0  # then what is not committed is left to the home's agent
GIVE_BACK_TIMEOUT_S = 2.0  # a lease that is not given back ends by itself
READ_AHEAD_KIB = 2048


async def run_mount(config: ServerConfig, until: Callable[[], Awaitable[None]], limits: CacheLimits = CACHE_LIMITS) -> None:
    """Mounts the namespace and serves it until *until* returns or it is unmounted; what was closed is committed before it
    ends."""
    background = trio.CancelScope(shield=True)
    with _only_mount(config):
        await _run(config, until, limits, background)


async def _run(
    config: ServerConfig, until: Callable[[], Awaitable[None]], limits: CacheLimits, background: trio.CancelScope
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_after, until, nursery.cancel_scope)
        # Shielded, and ended by hand: after the order to stop, the session must go on until what was closed is committed.
        tasks = await nursery.start(_run_background, background)
        try:
            mount = Mount(config, tasks, limits)
            mount.start()
            try:
                async with _mounted(mount, config):
                    set_read_ahead = partial(_set_read_ahead, mount, config.mount.mountpoint)
                    tasks.start_soon(partial(tended, set_read_ahead, again=False))
                    tasks.start_soon(partial(tended, partial(_announce, mount), again=False))
                    try:
                        await pyfuse3.main(min_tasks=MIN_TASKS, max_tasks=MAX_TASKS)
                    finally:
                        await _drain(mount, background)
            finally:
                # After the unmount: the kernel keeps nothing any more, so leases end without anybody waiting for them.
                await _give_back(mount, background)
        finally:
            background.cancel()
        nursery.cancel_scope.cancel()


async def _announce(mount: Mount) -> None:
    await mount.serving()
    SERVICE.ready()


def _only_mount(config: ServerConfig) -> AbstractContextManager[None]:
    """Makes sure that this is the server's only mount process. Raises `Refused` while there is another.

    So the manager may take the leases of the mount that was there before for ended: its process is dead.
    """
    return only_process(MOUNT_LOCKS, mount_lock(config.cluster, config.server), f"a mount of {config.server}")


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


async def _drain(mount: Mount, background: trio.CancelScope) -> None:
    if background.cancel_called:
        return
    with trio.move_on_after(DRAIN_TIMEOUT_S, shield=True) as scope:
        await mount.drain()
    if scope.cancelled_caught:
        log.warning("stopping with files that are not committed yet; this server's agent will commit them")


async def _give_back(mount: Mount, background: trio.CancelScope) -> None:
    if background.cancel_called:
        return
    with trio.move_on_after(GIVE_BACK_TIMEOUT_S, shield=True):
        try:
            await mount.give_back_all()
        except GodwitError as error:
            log.warning("leases were not given back, they end by themselves: %s", error)


def _options(config: ServerConfig) -> set[str]:
    return {
        "default_permissions",
        "allow_other",
        "suid" if config.mount.suid else "nosuid",
        "dev" if config.mount.dev else "nodev",
        f"fsname=godwit:{config.cluster}",
        "subtype=godwit",
    }


@asynccontextmanager
async def _mounted(mount: Mount, config: ServerConfig) -> AsyncIterator[None]:
    mountpoint = config.mount.mountpoint
    shield(mountpoint)  # before: what is written while nothing is mounted would be hidden later
    pyfuse3.init(mount.operations, mountpoint, _options(config))
    mount.mounted()
    log.info("mounted %s", mountpoint)
    try:
        yield
    finally:
        # Somebody else may have unmounted it: then something else may be mounted there by now.
        if mount.unmounting():
            detach_by_force(mountpoint)
        pyfuse3.close(unmount=True)
        log.info("unmounted %s", mountpoint)


async def _set_read_ahead(mount: Mount, mountpoint: str) -> None:
    """Lets the kernel ask for larger pieces of a file that is read in sequence than its default of 128 KiB.

    That has to wait until FUSE_INIT has been answered, which sets the value back. The device number comes from mountinfo:
    `stat` on the mount would wait for this very process.
    """
    await mount.begun()
    mounted = uppermost(Path(mountpoint))
    if mounted is not None:
        try:
            Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
        except OSError as error:
            log.info("read-ahead stays at the kernel's default: %s", error_text(error))
