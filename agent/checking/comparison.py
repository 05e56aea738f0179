"""Compares a replica in the catalog with its object on the disk, and says which file may take its place.

Pure: the values come from the manager and from `agent.checking.inspection`.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from cluster.messages import ReplicaState, Stamp
from cluster.volume.layout import ObjectRecord


class Kind(StrEnum):
    """How a disk differs from the catalog."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    VERSION = "wrong version"
    SIZE = "wrong size"
    STAMP = "wrong stamp"
    DIGEST = "wrong digest"
    UNREADABLE = "unreadable"


class Observed(NamedTuple):
    """A file as it was found; `digest` only if it was read, `error` if it could not be looked at."""

    stamp: Stamp  # of size and times; zeros if it could not be looked at
    record: ObjectRecord | None = None  # None: it has none, or it is damaged
    digest: bytes = b""
    error: str = ""  # the system's words


def judge(row: ReplicaState, observed: Observed | None) -> Kind | None:
    """How the object differs from what the catalog says; None if it does not, or nobody can say.

    An object with the catalog's stamp is the one that the catalog means, whatever version its record has: a file that fell back
    has one of an older version. The home of a dirty file has content that the catalog does not know yet. What a task is about
    to replace or delete, or has just, is not looked at.
    """
    # A task holds it: what is there is about to change by order.
    if row.task or row.wanted < 0:
        return None
    if observed is None:
        return Kind.MISSING
    if observed.error:
        return Kind.UNREADABLE
    if (row.is_home and row.dirty) or row.stamp is None:
        return None
    if observed.stamp == row.stamp:
        # The same stamp and another digest: the disk has changed bits by itself.
        known = known_digest(row, observed)
        return Kind.DIGEST if known and observed.digest and observed.digest != known else None
    if observed.record is not None and observed.record.version != row.version:
        return Kind.VERSION
    return Kind.SIZE if observed.stamp.size != row.stamp.size else Kind.STAMP


def known_digest(row: ReplicaState, observed: Observed) -> bytes:
    """The digest that the object should have: the catalog's, else that of its own record; empty if neither knows one."""
    if row.checksum:
        return row.checksum
    if observed.record is None or observed.record.version != row.version:
        return b""
    try:
        return bytes.fromhex(observed.record.checksum)
    except ValueError:
        return b""


def is_the_content(row: ReplicaState, observed: Observed) -> bool:
    """Whether a file has the content that the catalog means. With a digest in the catalog, only its own digest says that; one
    that was read must be that of its record, too."""
    if observed.error or row.stamp is None or observed.stamp.size != row.stamp.size or _is_of_another(row, observed):
        return False
    if row.checksum:
        return observed.digest == row.checksum
    if observed.digest and known_digest(row, observed) not in (b"", observed.digest):
        return False
    version = None if observed.record is None else observed.record.version
    # The catalog has no digest: a write that kept version and mtime would not be noticed.
    return (version, observed.stamp.mtime_ns) == (row.version, row.stamp.mtime_ns)


def is_newer(row: ReplicaState, observed: Observed) -> bool:
    """Whether a home's file may have content that the catalog does not know yet, or has forgotten: that is to be committed."""
    if observed.error or not row.is_home or _is_of_another(row, observed):
        return False
    # A file that was never committed has no record yet.
    if observed.record is None:
        return row.dirty and row.version == 0
    # Written under a home that the catalog does not know: an older catalog, to which nothing may be committed from here.
    if observed.record.home_epoch > row.home_epoch:
        return False
    return observed.record.version > row.version or (row.dirty and observed.record.version == row.version)


def _is_of_another(row: ReplicaState, observed: Observed) -> bool:
    return observed.record is not None and observed.record.ino != row.ino


def best_of(row: ReplicaState, found: Iterable[tuple[str, Observed]]) -> str | None:
    """Which of these files (by path) is to be put where the object is missing; None if none is.

    The content that the catalog means, else, for a home, the newest that it may have had.
    """
    candidates = list(found)
    for path, observed in candidates:
        if is_the_content(row, observed):
            return path
    newer = [(_version(observed), observed.stamp.ctime_ns, path) for path, observed in candidates if is_newer(row, observed)]
    return max(newer)[2] if newer else None


def _version(observed: Observed) -> int:
    return observed.record.version if observed.record else 0
