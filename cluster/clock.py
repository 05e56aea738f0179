"""The only module that reads a clock.

Waiting uses trio's monotonic clock. Wall-clock times are for file times and display only; nothing is ever decided by
comparing two machines' wall clocks.
"""

import time

import trio

_CLOCK_REALTIME_COARSE = 5  # <linux/time.h>; the time module does not name it


def monotonic_s() -> float:
    """Seconds on the monotonic clock that trio's deadlines use (a `MockClock` in tests)."""
    return trio.current_time()


def thread_s() -> float:
    """Seconds on the same clock, for threads without an event loop."""
    return time.monotonic()


def file_time_ns() -> int:
    """Wall-clock nanoseconds as the kernel stamps them on files (`CLOCK_REALTIME_COARSE`).

    The coarse clock is used because backing files are stamped with it: a finer one would make a file's creation appear
    later than its first write.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)
