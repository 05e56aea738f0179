"""Detaches this server's mount when its process was killed and cannot end.

A killed process ends when its last thread does. One that waits in the kernel for a read that this process was to answer never
does, and keeps /dev/fuse open, so that the kernel does not notice either: programs that use the mount would wait for ever, and
neither systemd nor the lab's supervisor would hear that there is something to start again (`cluster.mountpoint.detach_by_force`).
The process itself can do nothing about that any more; its server's agent can.
"""

import errno
import logging
from pathlib import Path

import trio

from agent.loop import Outcome
from cluster.config import ServerConfig
from cluster.mounted import uppermost
from cluster.mountpoint import abort, detach_by_force
from cluster.process_table import has_dead_leader
from cluster.runtime import MOUNT_LOCKS, holder_of, mount_lock

log = logging.getLogger(__name__)

LOOK_S = 1.0


class DeadMount:
    """Worker: looks at the process of the mount of this server, if it has one."""

    name = "look at the mount's process"

    def __init__(self, config: ServerConfig) -> None:
        self._lock = MOUNT_LOCKS / mount_lock(config.cluster, config.server)
        self._mountpoint = config.mount.mountpoint
        self._stuck: int | None = None  # the process that could not end when it was looked at last

    async def run_once(self) -> Outcome:
        pid = holder_of(self._lock)
        stuck = pid if pid is not None and has_dead_leader(pid) else None
        # Twice: the threads of a process that ends end one after the other.
        if stuck is not None and stuck == self._stuck:
            await trio.to_thread.run_sync(self._detach)
        self._stuck = stuck
        return Outcome.IDLE

    def _detach(self) -> None:
        mounted = uppermost(Path(self._mountpoint))
        if mounted is None or not mounted.is_fuse:
            return
        log.error("the process of the mount at %s was killed and cannot end: detaching it", self._mountpoint)
        try:
            detach_by_force(self._mountpoint)
        except PermissionError:
            # Its unit keeps it from unmounting (docs/operations.md). The process ends all the same, and its own unit does that.
            abort(mounted.device)
        except OSError as error:
            if error.errno != errno.EINVAL:  # somebody else was faster
                raise
