"""The content of a home's object: what it is now, and how it is committed to the catalog.

Mounts and agents both write objects and both commit. The order of commits of one file is kept by the object's lock: an
`flock` on the object, held from `fstat` until the catalog has answered. It is the only use of `flock` on objects.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import msgspec
import trio

from cluster.errors import Refused
from cluster.messages import Commit, Content, Node, Operation, Stamp
from cluster.volume.cached_open import open_cached
from cluster.volume.fence import fence, lift
from cluster.volume.layout import ObjectRecord, display_path, read_record, write_record
from cluster.volume.regular import open_regular

ApplyOne = Callable[[Operation], Awaitable[Node]]
MakeCommit = Callable[[int], Commit]
RunCommit = Callable[[int, MakeCommit], Awaitable[Commit]]

LOCK_RETRY_MIN_S = 0.001
LOCK_RETRY_MAX_S = 0.02
TICK_S = 0.001
REALTIME_COARSE = 5  # of linux/time.h: the clock of files' times, where they are coarse

FINE_TIMES = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (6, 13)
"""Whether a change that follows a look at a file's times always moves them (multigrain timestamps). Before, what is changed
within one tick of the kernel's clock, up to 10 ms, looks the same."""


def content_of(status: os.stat_result) -> Content:
    """The content that an object's `stat` shows."""
    return Content(size=status.st_size, blocks=status.st_blocks, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of an object from its `stat`."""
    return Stamp(size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


def is_as_committed(node: Node, status: os.stat_result) -> bool:
    """Whether the home's object, by its `stat`, can be what the catalog says; while it is dirty, anything can."""
    if node.dirty or not node.version:
        return True
    return (status.st_size, status.st_ctime_ns) == (node.size, node.object_ctime_ns)


def visible_ctime_ns(ctime_ns: int, content: Content) -> int:
    """The file's change time after a write that left *content*.

    The object's own ctime also moves when Godwit writes its record, so it only bounds an mtime that was set by hand.
    """
    return max(ctime_ns, min(content.mtime_ns, content.ctime_ns))


def is_as_made(node: Node, content: Content) -> bool:
    """Whether nobody has written a new file yet whose object was made before it: its times are not those of the object."""
    return not node.version and not content.size and content.mtime_ns == node.object_ctime_ns


def overlay(node: Node, content: Content) -> Node:
    """*node* with the size and times that its home's object has at this moment."""
    if (content.ctime_ns == node.object_ctime_ns and content.size == node.size) or is_as_made(node, content):
        return node
    return msgspec.structs.replace(
        node,
        size=content.size,
        blocks=content.blocks,
        mtime_ns=content.mtime_ns,
        ctime_ns=visible_ctime_ns(node.ctime_ns, content),
    )


@asynccontextmanager
async def object_lock(path: str) -> AsyncIterator[int]:
    """Holds the lock of the object at *path*, on a descriptor of its own, which it yields. Raises `OSError`.

    The opening is not bounded: whoever must go on when a disk hangs opens it otherwise, and takes `lock_of`.
    """
    # For reading, which is enough for all that its holders do, and possible with a fenced object, too.
    descriptor = open_cached(path, os.O_RDONLY)
    if descriptor is None:
        descriptor = await trio.to_thread.run_sync(open_regular, path, os.O_RDONLY)
    async with lock_of(descriptor):
        yield descriptor


@asynccontextmanager
async def lock_of(descriptor: int) -> AsyncIterator[None]:
    """Holds the lock of the object that *descriptor* is of, and closes it. Raises `OSError`."""
    try:
        wait_s = LOCK_RETRY_MIN_S
        while not try_lock(descriptor):
            # A blocking flock could not be cancelled, so that whoever stops with the lock would stop us too.
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, LOCK_RETRY_MAX_S)
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Whether the object's lock is held by *descriptor* now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def in_thread(descriptor: int, make: MakeCommit) -> Commit:
    """Makes a commit in a thread, since that writes to the object; nothing cancels it, so that *descriptor* stays its own."""
    return await trio.to_thread.run_sync(make, descriptor)


async def commit_object(
    descriptor: int,
    node: Node,
    path: bytes,
    *,
    final: bool,
    apply: ApplyOne,
    begun: int = 0,
    fenced: bool = False,
    run: RunCommit = in_thread,
) -> Node:
    """Commits the object's present content; the caller holds the object's lock. Returns the catalog's node.

    *node* is the committer's knowledge of the inode, *begun* the number that came with it (see `Commit`), *path* its last
    known name (empty: as before). If nothing was written since the last commit, only `final` is told. *fenced*: the
    committer has fenced the object, and it stays so. Raises what *apply* raises; the file is still dirty then and a repeat
    is harmless.
    """
    while True:
        commit = await run(descriptor, partial(make_commit, node=node, path=path, final=final, begun=begun, fenced=fenced))
        try:
            return await apply(commit)
        except Refused as error:
            if error.errno != errno.ESTALE:
                raise
            # The record was lost or older than the catalog: a version above both is needed, and the stamp is unknown.
            node = msgspec.structs.replace(node, version=commit.version + 1, object_ctime_ns=0)


def make_commit(
    descriptor: int,
    node: Node,
    path: bytes,
    *,
    final: bool,
    begun: int = 0,
    fenced: bool = False,
    fine_times: bool = FINE_TIMES,
) -> Commit:
    """The commit of the object's present content, whose record is written. Blocks. The caller holds the object's lock.

    The record of a *fenced* object is written with the fence lifted: what anybody writes meanwhile is in the commit, since
    the content is looked at when the fence is back. Without *fine_times* it returns after the tick of the kernel's clock
    that the commit shows.
    """
    begun_commit = begin_commit(descriptor, node, path, fenced=fenced)
    if not fine_times and begun_commit.has_content:
        wait_for_next_tick(os.fstat(descriptor).st_ctime_ns)
    return end_commit(descriptor, node, begun_commit, final=final, begun=begun)


class BegunCommit(NamedTuple):
    """What the object's record says already."""

    version: int
    has_content: bool  # something was written since the last commit


def begin_commit(descriptor: int, node: Node, path: bytes, *, fenced: bool = False) -> BegunCommit:
    """The first half of `make_commit`. Blocks. Without `FINE_TIMES` a tick must pass before the second."""
    record = read_record(descriptor)
    version = max(node.version, record.version if record else 0)
    status = os.fstat(descriptor)
    unwritten = is_as_made(node, content_of(status))
    # The first commit gives what was never written its record, too: it is copied like anything else.
    if status.st_ctime_ns == node.object_ctime_ns and not unwritten:
        return BegunCommit(version, has_content=False)
    if fenced:
        lift(descriptor)
    _set_record(
        descriptor,
        ObjectRecord(
            ino=node.ino,
            version=version + 1,
            home_epoch=node.home_epoch,
            path=display_path(path) if path else record.path if record else "",
            mode=node.mode,
            uid=node.uid,
            gid=node.gid,
            mtime_ns=node.mtime_ns if unwritten else status.st_mtime_ns,
        ),
    )
    if fenced:
        fence(descriptor)
    return BegunCommit(version + 1, has_content=True)


def end_commit(descriptor: int, node: Node, commit: BegunCommit, *, final: bool, begun: int = 0) -> Commit:
    """The second half of `make_commit`."""
    content = content_of(os.fstat(descriptor)) if commit.has_content else None
    return Commit(node.ino, node.home_epoch, commit.version, content, final, begun)


def set_times(descriptor: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Sets the times of a dirty file's object; None leaves one as it is. Blocks. The caller holds the object's lock."""
    lift(descriptor)  # the next commit has this change; an agent that makes it fences again
    status = os.fstat(descriptor)
    atime_ns = status.st_atime_ns if atime_ns is None else atime_ns
    mtime_ns = status.st_mtime_ns if mtime_ns is None else mtime_ns
    os.utime(descriptor, ns=(atime_ns, mtime_ns))


def _set_record(descriptor: int, record: ObjectRecord) -> None:
    """On a disk that has become read-only the old record stays: a file that stayed dirty could be neither copied nor moved, and
    nobody can write the object any more."""
    try:
        write_record(descriptor, record)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise


def wait_for_next_tick(ctime_ns: int) -> None:
    """Until what is changed from now on gets another change time."""
    while time.clock_gettime_ns(REALTIME_COARSE) <= ctime_ns:
        time.sleep(TICK_S)
