"""The lab's processes: started for good, told apart from later ones with the same number, and ended.

A process is known by its number, its start time and the boot it was started in: a signal never reaches a stranger.
"""

import os
import select
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
STATE_FIELD = 0
START_FIELD = 19

_children: set[int] = set()
"""What this very process has spawned and not reaped yet."""


class ProcessId(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One process; `started` is in clock ticks since boot."""

    pid: int
    started: int
    boot: str


def spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> ProcessId:
    """Starts a process that outlives this one: its own session, no terminal, output appended to *log*.

    It inherits the working directory, which `godwit run` leaves.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT],
    )
    _children.add(pid)
    found = identify(pid)
    assert found is not None, "an unreaped child has an identity"
    return found


def identify(pid: int) -> ProcessId | None:
    """The identity of the process that has this number now; a zombie has one, too."""
    fields = _stat_fields(pid)
    if fields is None:
        return None
    return ProcessId(pid, int(fields[START_FIELD]), BOOT_ID.read_text().strip())


def is_alive(process: ProcessId) -> bool:
    """Whether the process still runs; reaps it if it was this process's child."""
    if identify(process.pid) != process:
        return False
    _reap(process.pid)
    fields = _stat_fields(process.pid)
    return fields is not None and fields[STATE_FIELD] not in "ZX"


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Sends a signal; False if the process is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_gone(process: ProcessId, timeout_s: float) -> bool:
    """Waits until the process has ended; False if it has not in time."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if is_alive(process):
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(timeout_s * 1000)
        return not is_alive(process)
    finally:
        os.close(descriptor)


def end(processes: Sequence[ProcessId], patience_s: float, ask: signal.Signals = signal.SIGTERM) -> list[ProcessId]:
    """Asks processes to stop, and kills those that have not after *patience_s*; returns those that even that did not end."""
    for process in processes:
        if send(process, ask):
            send(process, signal.SIGCONT)
    stubborn = [process for process in processes if not wait_gone(process, patience_s)]
    for process in stubborn:
        send(process, signal.SIGKILL)
    return [process for process in stubborn if not wait_gone(process, patience_s)]


def is_listening(process: ProcessId, port: int) -> bool:
    """Whether something listens on a TCP port in the network namespace of the process."""
    wanted = f"{port:04X}"
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _slot, local, _remote, state, *_rest = line.split()
            if state == "0A" and local.rpartition(":")[2] == wanted:
                return True
    return False


def _stat_fields(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _reap(pid: int) -> None:
    """Lets an ended child go; other children of this process are for those who started them to wait for."""
    if pid in _children:
        ended, _status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _children.discard(pid)
