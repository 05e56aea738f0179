"""Waiting for one descriptor in a program that runs no event loop."""

import select


def is_readable(descriptor: int, within_s: float) -> bool:
    """Whether *descriptor* can be read without waiting within so many seconds: it has data, its other end is closed, or, of a
    pidfd, the process has ended. Other than with select(2) its number may be 1024 and more.
    """
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(within_s * 1000))
