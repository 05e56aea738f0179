"""The lab's processes: started for good, told apart from later ones with the same number, and ended.

A process is known by its number, its start time and the boot it was started in: a signal never reaches a stranger.
"""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from cluster.process_table import has_ended, stat_fields
from cluster.readable import is_readable

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
START_FIELD = 19  # of `stat_fields`: `starttime`
TICKS_PER_S = os.sysconf("SC_CLK_TCK")  # of `starttime`, whatever the kernel's own HZ is

_children: set[int] = set()
"""What this very process has spawned and not reaped yet."""


class ProcessId(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process; `started` is in clock ticks since boot."""

    pid: int  # in the machine's process namespace: the lab has namespaces of networks and mounts only
    started: int  # with the number it makes a process unique within one boot
    boot: str  # `lab.json` outlives a reboot, after which both numbers begin again


def spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> ProcessId:
    """Starts a process that outlives this one: its own session, no terminal, output appended to *log*.

    It inherits the working directory, which `godwit run` leaves.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # posix_spawn instead of fork: a process with threads must run nothing of its own between fork and exec.
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=[
            # A terminal that is closed later would be a SIGHUP, or EIO at the first read.
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        # Ctrl-C in the shell that ran `lab up` goes to the shell's process group: parts are in none of its.
        setsid=True,
        # Both are inherited across exec: a shell that ignores SIGINT for background jobs would make parts deaf to it.
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT],
    )
    _children.add(pid)
    found = identify(pid)
    assert found is not None, "an unreaped child has an identity"
    return found


def identify(pid: int) -> ProcessId | None:
    """The identity of the process that has this number now; a zombie has one, too."""
    fields = stat_fields(pid)
    if fields is None:
        return None
    return ProcessId(pid, int(fields[START_FIELD]), BOOT_ID.read_text().strip())


def is_alive(process: ProcessId) -> bool:
    """Whether the process still runs, with any of its threads; reaps it if it was this process's child."""
    if identify(process.pid) != process:
        return False
    _reap(process.pid)
    # After reaping: a zombie of ours is gone by now. With a thread left it has its locks and sockets still, which whoever is
    # started in its place would find taken.
    return not has_ended(process.pid)


def age_s(process: ProcessId) -> float:
    """How long ago the process was started, in this boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - process.started / TICKS_PER_S


def watch(process: ProcessId) -> int | None:
    """A descriptor of the process, which can be read from when it has ended, for the caller to close; None if it is gone."""
    try:
        # The descriptor before the look: it stays with the process that had the number then, so no stranger comes in between.
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):
        return descriptor
    os.close(descriptor)
    return None


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Sends a signal; False if the process is gone."""
    descriptor = watch(process)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        # It ended after the look; a pidfd of a process that is gone is ESRCH, never a signal to another.
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(process: ProcessId, timeout_s: float) -> bool:
    """Waits until the process has ended; False if it has not in time."""
    descriptor = watch(process)
    if descriptor is None:
        return True
    try:
        is_readable(descriptor, timeout_s)
    finally:
        os.close(descriptor)
    return not is_alive(process)


def end(processes: Sequence[ProcessId], patience_s: float, ask: signal.Signals = signal.SIGTERM) -> list[ProcessId]:
    """Asks processes to stop, and kills those that have not after *patience_s*; returns those that even that did not end."""
    for process in processes:
        if send(process, ask):
            # A stopped process gets SIGTERM only when it goes on.
            send(process, signal.SIGCONT)
    # All were asked before the first is waited for; the patience is of each, after the one before.
    stubborn = [process for process in processes if not wait_gone(process, patience_s)]
    for process in stubborn:
        send(process, signal.SIGKILL)
    return [process for process in stubborn if not wait_gone(process, patience_s)]


def is_listening(process: ProcessId, port: int) -> bool:
    """Whether something listens on a TCP port in the network namespace of the process."""
    # `/proc/PID/net/tcp` has ports in hexadecimal, and is of the process's own network namespace.
    wanted = f"{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _slot, local, _remote, state, *_rest = line.split()
            if state == "0A" and local.rpartition(":")[2] == wanted:  # TCP_LISTEN
                return True
    return False


def reap() -> None:
    """Lets all children go that have ended, also those that nobody asks for any more."""
    for pid in list(_children):
        _reap(pid)


def _reap(pid: int) -> None:
    """Lets an ended child go; other children of this process are for those who started them to wait for."""
    if pid in _children:
        ended, _status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _children.discard(pid)
