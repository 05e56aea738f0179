"""The name under which content that nobody else had is kept beside its file."""

import time


def conflict_name(name: bytes, server: str, mtime_ns: int, count: int, limit: int) -> bytes:
    """`NAME.conflict-SERVER-TIME` (UTC, of the last write), from the second of that name on with a number; *name* is cut to
    fit *limit* bytes."""
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(mtime_ns // 1_000_000_000))
    suffix = f".conflict-{server}-{when}" + (f"-{count}" if count > 1 else "")
    return name[: limit - len(suffix)] + suffix.encode()
