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


class Seen(NamedTuple):
    """A file as it was found; `digest` only if it was read, `error` if it could not be looked at."""

    stamp: Stamp  # of size and times; zeros if it could not be looked at
    record: ObjectRecord | None = None  # None: it has none, or it is damaged
    digest: bytes = b""
    error: str = ""  # the system's words


def judge(row: ReplicaState, seen: Seen | None) -> Kind | None:
    """How the object differs from what the catalog says; None if it does not, or nobody can say.

    An object with the catalog's stamp is the one that the catalog means, whatever version its record has: a file that fell back
    has one of an older version. The home of a dirty file has content that the catalog does not know yet. What a task is about
    to replace or delete, or has just, is not looked at.
    """
    # A task holds it: what is there is about to change by order.
    if row.task or row.wanted < 0:
        return None
    if seen is None:
        return Kind.MISSING
    if seen.error:
        return Kind.UNREADABLE
    if (row.is_home and row.dirty) or row.stamp is None:
        return None
    if seen.stamp == row.stamp:
        # The same stamp and another digest: the disk has changed bits by itself.
        known = known_digest(row, seen)
        return Kind.DIGEST if known and seen.digest and seen.digest != known else None
    if seen.record is not None and seen.record.version != row.version:
        return Kind.VERSION
    return Kind.SIZE if seen.stamp.size != row.stamp.size else Kind.STAMP


def known_digest(row: ReplicaState, seen: Seen) -> bytes:
    """The digest that the object should have: the catalog's, else that of its own record; empty if neither knows one."""
    if row.checksum:
        return row.checksum
    if seen.record is None or seen.record.version != row.version:
        return b""
    try:
        return bytes.fromhex(seen.record.checksum)
    except ValueError:
        return b""


def is_the_content(row: ReplicaState, seen: Seen) -> bool:
    """Whether a file has the content that the catalog means. With a digest in the catalog, only its own digest says that."""
    if seen.error or row.stamp is None or seen.stamp.size != row.stamp.size or _is_of_another(row, seen):
        return False
    if row.checksum:
        return seen.digest == row.checksum
    version = None if seen.record is None else seen.record.version
    # The catalog has no digest: a write that kept version and mtime would not be seen.
    return (version, seen.stamp.mtime_ns) == (row.version, row.stamp.mtime_ns)


def is_newer(row: ReplicaState, seen: Seen) -> bool:
    """Whether a home's file may have content that the catalog does not know yet, or has forgotten: that is to be committed."""
    if seen.error or not row.is_home or _is_of_another(row, seen):
        return False
    # A file that was never committed has no record yet.
    if seen.record is None:
        return row.dirty and row.version == 0
    # Written under a home that the catalog does not know: an older catalog, to which nothing may be committed from here.
    if seen.record.home_epoch > row.home_epoch:
        return False
    return seen.record.version > row.version or (row.dirty and seen.record.version == row.version)


def _is_of_another(row: ReplicaState, seen: Seen) -> bool:
    return seen.record is not None and seen.record.ino != row.ino


def best_of(row: ReplicaState, found: Iterable[tuple[str, Seen]]) -> str | None:
    """Which of these files (by path) is to be put where the object is missing; None if none is.

    The content that the catalog means, else, for a home, the newest that it may have had.
    """
    candidates = list(found)
    for path, seen in candidates:
        if is_the_content(row, seen):
            return path
    newer = [(_version(seen), seen.stamp.ctime_ns, path) for path, seen in candidates if is_newer(row, seen)]
    return max(newer)[2] if newer else None


def _version(seen: Seen) -> int:
    return seen.record.version if seen.record else 0
