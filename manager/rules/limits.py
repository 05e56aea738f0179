"""Ranges that numbers from the network must keep."""

import errno

from cluster.errors import ProtocolError, refused

ID_MAX = 2**32 - 2  # of users and groups; -1 means "unchanged" to chown(2)
TIME_MIN_NS = -(2**63)  # since the epoch: what 64 bits hold
TIME_MAX_NS = 2**63 - 1
NUMBER_MAX = 2**62  # leaves room to count on in 64 bits
TEXT_MAX = 4096  # characters of a path for people
ERROR_MAX = 1000  # characters of a reason that is stored


def check_id(value: int) -> None:
    """EINVAL for what cannot be a user or group."""
    if not 0 <= value <= ID_MAX:
        raise refused(errno.EINVAL, f"user or group {value}")


def check_time(value: int) -> None:
    """EINVAL for a time that the catalog cannot store."""
    if not TIME_MIN_NS <= value <= TIME_MAX_NS:
        raise refused(errno.EINVAL, f"time {value}")


def check_size(value: int) -> None:
    """EINVAL for what cannot be a size or a count of blocks."""
    if not 0 <= value < 2**63:
        raise refused(errno.EINVAL, f"size {value}")


def check_number(value: int, what: str) -> None:
    """`ProtocolError` for a number that cannot come from a correct program."""
    if not 0 <= value <= NUMBER_MAX:
        raise ProtocolError(f"{what} is out of range: {value}")


def check_session(value: int) -> None:
    """`ProtocolError` for what cannot be the number of a session: those are drawn from all that 63 bits hold."""
    if value < 0:
        raise ProtocolError(f"session is out of range: {value}")


def check_count(length: int, limit: int, what: str) -> None:
    """`ProtocolError` for a list that is longer than any correct program sends."""
    if length > limit:
        raise ProtocolError(f"too many {what}: {length}")


def clean_text(text: str, limit: int = TEXT_MAX) -> str:
    """*text* cut to a length and without what a database cannot store."""
    return text[:limit].replace("\0", "\N{REPLACEMENT CHARACTER}")
