"""The name under which something is kept beside what has taken its name meanwhile."""

import time

from sqlalchemy import Connection

from cluster.messages import NAME_MAX
from manager.catalog.inodes import find_entry


def conflict_name(name: bytes, server: str, mtime_ns: int, count: int, limit: int) -> bytes:
    """`NAME.conflict-SERVER-TIME` (UTC, of the last write), from the second of that name on with a number; *name* is cut to
    fit *limit* bytes."""
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(mtime_ns // 1_000_000_000))
    suffix = f".conflict-{server}-{when}" + (f"-{count}" if count > 1 else "")
    return name[: limit - len(suffix)] + suffix.encode()


def free_name(connection: Connection, parent: int, name: bytes, server: str, mtime_ns: int) -> bytes:
    """The first of these names that nothing in the directory has."""
    count = 1
    while find_entry(connection, parent, candidate := conflict_name(name, server, mtime_ns, count, NAME_MAX)) is not None:
        count += 1
    return candidate
