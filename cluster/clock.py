"""The only module that reads a clock.

Waiting uses trio's monotonic clock. Wall-clock times are for file times and display only; nothing is ever decided by
comparing two machines' wall clocks.
"""

import ctypes
import sys
import time

import trio

_CLOCK_REALTIME_COARSE = 5  # <linux/time.h>; the time module does not name it
_TIMEX_BYTES = 256  # more than `struct timex` of <sys/timex.h>; zeros: nothing is set
_STATUS_AT = 40  # in it, where a long has 64 bits
_UNSYNCHRONISED = 0x40  # STA_UNSYNC

_libc = ctypes.CDLL(None)


def monotonic_s() -> float:
    """Seconds on the monotonic clock that trio's deadlines use (a `MockClock` in tests)."""
    return trio.current_time()


def thread_s() -> float:
    """Seconds on the same clock, for threads without an event loop, and for measuring how long something took."""
    return time.monotonic()


def file_time_ns() -> int:
    """Wall-clock nanoseconds as the kernel stamps them on files (`CLOCK_REALTIME_COARSE`).

    The coarse clock is used because backing files are stamped with it: a finer one would make a file's creation appear
    later than its first write.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def is_in_step() -> bool | None:
    """Whether something, as an NTP daemon, keeps this machine's wall clock right; None: the kernel does not tell."""
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    if _libc.adjtimex(timex) < 0:
        return None
    status = int.from_bytes(timex.raw[_STATUS_AT : _STATUS_AT + 4], sys.byteorder)
    return not status & _UNSYNCHRONISED
