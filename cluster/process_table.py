"""What the kernel tells of other processes of this machine, by their numbers."""

import os
from pathlib import Path

STATE_FIELD = 0  # of `stat_fields`: the third field of proc_pid_stat(5)
_ENDED = frozenset("ZX")


def stat_fields(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")  # a program chooses its name's bytes
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in brackets and may have brackets and blanks of its own: only the last one ends it.
    return text.rpartition(")")[2].split()


def has_ended(pid: int) -> bool:
    """Whether all of a process's threads have ended; it may wait for its parent to take notice."""
    fields = stat_fields(pid)
    return fields is None or (fields[STATE_FIELD] in _ENDED and _threads(pid) <= 1)


def has_dead_leader(pid: int) -> bool:
    """Whether the first thread of a process has ended, and others have not.

    After SIGKILL threads end one after the other: until the last has, the process keeps its locks, sockets and other files.
    """
    fields = stat_fields(pid)
    return fields is not None and fields[STATE_FIELD] in _ENDED and _threads(pid) > 1


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0
