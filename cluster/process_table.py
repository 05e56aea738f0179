"""What the kernel tells of other processes of this machine, by their numbers."""

import os
import time
from pathlib import Path

STATE_FIELD = 0  # of `stat_fields`: the third field of proc_pid_stat(5)
CHILDREN_USER_FIELD, CHILDREN_SYSTEM_FIELD = 13, 14  # in ticks; of those that were waited for, and of theirs
CPUCLOCK_SCHED = 2  # in the number of a clock: the time that threads were scheduled, in nanoseconds
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
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


def processor_s(pid: int) -> float:
    """User and system time of a process, all its threads and all its children, in seconds; 0 if there is no such process.

    Its own time is exact: `/proc/PID/stat` has it in steps of 10 ms only, which is what this takes for children that have ended.
    """
    fields = stat_fields(pid)
    try:
        # As clock_getcpuclockid(3) makes the number of another process's clock.
        own_s = time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)
        threads = os.listdir(f"/proc/{pid}/task")
        children = [int(child) for thread in threads for child in _children(pid, thread)]
    except OSError:
        # It ended in between.
        return 0.0
    ended_ticks = int(fields[CHILDREN_USER_FIELD]) + int(fields[CHILDREN_SYSTEM_FIELD]) if fields else 0
    return own_s + ended_ticks / _TICKS_PER_S + sum(map(processor_s, children))


def _children(pid: int, thread: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    except OSError:
        # The thread has ended.
        return []
