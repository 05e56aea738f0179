"""Objects on this server's own disks."""

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TypeVar

from cluster.errors import Changed, Fenced, GodwitError, from_os_error, refused
from cluster.messages import Commit, Content, Node, SetAttr, Stamp
from cluster.rpc.session import ManagerSession
from cluster.volume.content import (
    FINE_TIMES,
    ApplyOne,
    BegunCommit,
    begin_commit,
    commit_object,
    content_of,
    end_commit,
    is_as_committed,
    lock_of,
    set_times,
    stamp_of,
    try_lock,
    wait_for_next_tick,
)
from cluster.volume.extents import allocate, copy, seek
from cluster.volume.fence import is_writable, open_object_at
from cluster.volume.layout import VolumeLayout
from cluster.volume.regular import open_regular
from fusefs.content.disk_threads import DiskThreads, threads_of
from fusefs.content.objects import Buffer, Object

R = TypeVar("R")


class LocalObject:
    """An object on one of this server's volumes.

    What the kernel answers from its caches is done at once; what may wait for a disk goes to a thread, so that it holds up
    nobody else.
    """

    is_remote = False

    def __init__(self, path: str, descriptor: int, session: ManagerSession, timeout_s: float) -> None:
        self._path = path
        self._descriptor = descriptor  # -1 when it is closed
        self._append_descriptor = -1  # -1 until something is appended
        self._session = session
        self._timeout_s = timeout_s
        self._threads = threads_of(path.rsplit("/", 3)[0])  # of the volume: objects are three levels below it
        self._users = 0  # threads that work on the descriptor at the moment
        self._closing = False  # it is closed by the last of them
        self._flushed_at_close = False  # ext4 writes what was cut when it is closed: in a thread

    @classmethod
    async def open(cls, volume_path: str, ino: int, flags: int, session: ManagerSession, timeout_s: float) -> "LocalObject":
        """Opens an existing object; raises `GodwitError`."""
        open_at = partial(VolumeLayout.at(volume_path).open_object, ino, flags)
        return await cls._opened(volume_path, ino, flags, open_at, session, timeout_s)

    @classmethod
    async def open_home(
        cls, volume_path: str, ino: int, session: ManagerSession, timeout_s: float, *, to_write: bool = False
    ) -> "LocalObject":
        """Opens a home's object; *to_write*: this mount is registered as a writer, so that a fence is lifted."""
        open_at = partial(open_object_at, VolumeLayout.at(volume_path).object_path(ino), lifting=to_write)
        return await cls._opened(volume_path, ino, os.O_RDWR, open_at, session, timeout_s)

    @classmethod
    async def _opened(
        cls,
        volume_path: str,
        ino: int,
        flags: int,
        open_at: Callable[[], int],
        session: ManagerSession,
        timeout_s: float,
    ) -> "LocalObject":
        threads, path = threads_of(volume_path), VolumeLayout.at(volume_path).object_path(ino)
        what = f"object {ino} on {volume_path}"
        threads.require_answers(what)
        try:
            descriptor = await threads.open_existing(what, path, flags, timeout_s, open_at)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise GodwitError(f"inode {ino} has no object on {volume_path}", errno.EIO) from error
            threads.met(error)
            raise from_os_error(error, what) from error
        return cls(path, descriptor, session, timeout_s)

    @classmethod
    async def create(
        cls, volume_path: str, ino: int, session: ManagerSession, timeout_s: float, *, impatient: bool
    ) -> "LocalObject":
        """Makes an empty object; raises `GodwitError`, if *impatient* as soon as the disk is known to be silent."""
        (made,) = await cls.create_all(volume_path, [ino], session, timeout_s, impatient=impatient)
        return made

    @classmethod
    async def create_all(
        cls, volume_path: str, inodes: Sequence[int], session: ManagerSession, timeout_s: float, *, impatient: bool
    ) -> list["LocalObject"]:
        """As `create`, several in one turn of a thread; all of them or none."""
        threads, layout = threads_of(volume_path), VolumeLayout.at(volume_path)
        what = f"creating object {inodes[0]} on {volume_path}"
        if impatient:
            threads.require_answers(what)
        threads.changes()
        undo = partial(layout.remove_objects, inodes)
        try:
            made = await threads.open_all(what, partial(layout.create_objects, inodes), timeout_s, undo, impatient=impatient)
        except FileNotFoundError as error:
            raise GodwitError(f"{volume_path} is not there: is its disk mounted?") from error
        except OSError as error:
            threads.met(error)
            raise from_os_error(error, what) from error
        return [
            cls(layout.object_path(ino), descriptor, session, timeout_s) for ino, descriptor in zip(inodes, made, strict=True)
        ]

    @property
    def is_fenced(self) -> bool:
        return not is_writable(self._descriptor)

    @property
    def descriptor(self) -> int:
        """For the kernel's use, as long as the object is not closed."""
        return self._descriptor

    @property
    def path(self) -> str:
        """Where it was opened."""
        return self._path

    @property
    def is_silent(self) -> bool:
        """Its disk does not answer at present."""
        return self._threads.is_silent

    def stamp_in_place(self) -> Stamp | None:
        """Its stamp, if it is found where it was opened. If not, its disk has gone away since."""
        # Without waiting for a disk: the kernel keeps all of the path in its caches while this is open.
        try:
            found, own = os.stat(self._path), os.fstat(self._descriptor)
        except OSError:
            return None
        return stamp_of(own) if os.path.samestat(found, own) else None

    def begins_to_change(self) -> None:
        """The kernel is about to write it: for a while its disk is asked whether it answers."""
        self._threads.changes()

    def stamp(self) -> Stamp:
        return stamp_of(os.fstat(self._descriptor))

    def is_as_committed(self, node: Node) -> bool:
        """Whether it can have the content of *node*, by its size and change time."""
        return is_as_committed(node, os.fstat(self._descriptor))

    def born_ns(self) -> int:
        """The time that the disk's file system gave the object."""
        return os.fstat(self._descriptor).st_mtime_ns

    def remove(self) -> None:
        """Takes back a creation that the catalog refused."""
        self._threads.later(partial(os.unlink, self._path))
        self._flushed_at_close = True  # the last descriptor of what has no name any more frees its blocks
        self.close()

    async def read(self, offset: int, length: int) -> Buffer:
        # Same as `pread` in a thread where the page cache has all of it, saves about 100 µs of processor time.
        buffer = bytearray(length)
        try:
            count = os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
            # Fewer bytes are the end of the file, or of what is cached.
            if count == length or offset + count >= os.fstat(self._descriptor).st_size:
                return memoryview(buffer)[:count]
        except OSError as error:
            # It is not cached, or the file system cannot tell: the disk is asked in a thread.
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                raise self._failed(error, f"reading {self._path}") from error
        return await self._in_thread("reading", os.pread, self._descriptor, length, offset)

    async def write(self, offset: int, data: bytes, *, append: bool) -> int:
        # Always in a thread, also what the page cache would take at once: it may begin a transaction of the journal.
        descriptor = self._appending() if append else self._descriptor
        self._threads.changes()
        return await self._in_thread("writing", os.pwrite, descriptor, data, offset)

    def _appending(self) -> int:
        """A descriptor on which Linux appends whatever offset it is given (pwrite(2), BUGS)."""
        if self._append_descriptor < 0:
            # By the descriptor, not by the path, which may be of another object by now.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            try:
                self._append_descriptor = os.open(f"/proc/self/fd/{self._descriptor}", flags)
            except OSError as error:
                raise self._failed(error, f"opening {self._path} for appending") from error
        return self._append_descriptor

    async def truncate(self, size: int) -> None:
        self._flushed_at_close = True
        await self._in_thread("truncating", os.ftruncate, self._descriptor, size)

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        await self._in_thread("allocating", allocate, self._descriptor, mode, offset, length)

    async def seek(self, offset: int, whence: int) -> int | None:
        return await self._in_thread("seeking in", seek, self._descriptor, offset, whence)

    async def copy_from(self, source: Object, start: int, offset: int, length: int) -> int:
        # Another server's bytes would come here first: the kernel does that as well itself.
        if not isinstance(source, LocalObject) or source._closing:
            raise refused(errno.EXDEV)
        with source._in_use():
            return await self._in_thread("copying to", copy, source._descriptor, self._descriptor, start, offset, length)

    async def sync(self, *, data_only: bool) -> None:
        await self._in_thread("syncing", os.fdatasync if data_only else os.fsync, self._descriptor)

    async def stat(self) -> Content:
        return self.content()

    def content(self) -> Content:
        """Size and times as they are."""
        return content_of(os.fstat(self._descriptor))

    async def commit(self, node: Node, path: bytes, *, final: bool) -> Node:
        async with self._locked("committing") as descriptor:
            apply = self._session.applier(self._timeout_s)
            return await commit_object(descriptor, node, path, final=final, apply=apply, run=self._on_copy)

    @staticmethod
    @asynccontextmanager
    async def prepared(wanted: Sequence[tuple["LocalObject", Node, bytes]]) -> AsyncIterator[list[Commit | None]]:
        """The final commits of objects as they are, each with what is known of its inode and its last known path.

        None for one that holds up the others: somebody else has its lock, or its disk does not do what it should. The locks of
        the rest are held inside, until the catalog has answered. One thread does all on a disk: on a busy machine each turn by
        way of a thread costs more than what is done there.
        """
        by_disk: dict[DiskThreads, list[int]] = {}
        for at, (home, _node, _path) in enumerate(wanted):
            by_disk.setdefault(home._threads, []).append(at)
        commits: dict[int, Commit | None] = {}
        locked: list[int] = []
        try:
            for threads, places in by_disk.items():
                what, some = f"committing {len(places)} objects on {threads.root}", [wanted[at] for at in places]
                with suppress(GodwitError):
                    threads.require_answers(what)
                    found, opened = await threads.open_several(what, partial(_prepare, some), some[0][0]._timeout_s)
                    locked += opened
                    commits |= zip(places, found, strict=True)
            yield [commits.get(at) for at in range(len(wanted))]
        finally:
            for descriptor in locked:
                os.close(descriptor)

    @asynccontextmanager
    async def _locked(self, what: str) -> AsyncIterator[int]:
        """Holds the object's lock, on a descriptor of its own: the agent of this server commits and sets times under it, too."""
        what = f"{what} {self._path}"
        self._threads.require_answers(what)
        try:
            # For reading, which is enough for all that is done under it, and possible with a fenced object, too.
            descriptor = await self._threads.open_existing(what, self._path, os.O_RDONLY, self._timeout_s)
            async with lock_of(descriptor):
                yield descriptor
        except OSError as error:
            raise self._failed(error, what) from error

    async def set_times(self, change: SetAttr, apply: ApplyOne | None = None) -> Node:
        """Sets the times in the catalog, by *apply*, and, while the file is dirty, on the object, with no commit in between."""
        apply = apply or self._session.applier(self._timeout_s)
        async with self._locked("setting the times of") as descriptor:
            node = await apply(change)
            # Still under the lock: a commit in between would bring the object's old times into the catalog again.
            if node.dirty and change.mtime_ns is not None:
                await self._on_copy(descriptor, partial(set_times, atime_ns=change.mtime_ns, mtime_ns=change.mtime_ns))
            return node

    def close(self) -> None:
        """Closes the object as soon as no thread works on it any more."""
        self._closing = True
        if self._users == 0 and self._descriptor >= 0:
            self._close(self._descriptor)
            self._descriptor = -1
            if self._append_descriptor >= 0:
                self._close(self._append_descriptor)
                self._append_descriptor = -1

    def __del__(self) -> None:
        # Who opened it for an inode that was let go of meanwhile has nobody left to close it.
        self.close()

    def _close(self, descriptor: int) -> None:
        if self._flushed_at_close:
            self._threads.later(partial(os.close, descriptor))
        else:
            os.close(descriptor)

    async def _on_copy(self, descriptor: int, function: Callable[[int], R]) -> R:
        """Runs it in a thread, with a copy of *descriptor* that lasts until the disk answers, also if nobody waits any more."""
        # Whoever waits may be cancelled, and close what it has, while the thread goes on: the number could be another file's.
        own = os.dup(descriptor)
        ended = partial(self._close, own)
        return await self._threads.run(f"changing {self._path}", partial(function, own), ended, self._timeout_s, impatient=True)

    async def _in_thread(self, what: str, function: Callable[..., R], *args: object) -> R:
        self._users += 1  # until the thread has ended, which may be after whoever waits has given up
        what = f"{what} {self._path}"
        try:
            return await self._threads.run(what, partial(function, *args), self._left, self._timeout_s)
        except OSError as error:
            raise self._failed(error, what) from error

    def _failed(self, error: OSError, what: str) -> GodwitError:
        """The error for a failed system call; `Fenced` if the object is: its agent has committed it, others may write it now."""
        # Only the immutable flag refuses writes like this to a descriptor that was opened for them.
        if error.errno == errno.EPERM:
            return Fenced(f"{what}: this mount was away for so long that the file was committed without it")
        self._threads.met(error)
        return from_os_error(error, what)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._left()

    def _left(self) -> None:
        self._users -= 1
        if self._closing:
            self.close()


async def content_at(volume_path: str, ino: int, timeout_s: float) -> Content:
    """Size and times of an object on this server's disk; raises `OSError`, and `GodwitError` if the disk does not answer."""
    path = VolumeLayout.at(volume_path).object_path(ino)
    descriptor = await threads_of(volume_path).open_existing(f"looking at {path}", path, os.O_PATH, timeout_s)
    try:
        return content_of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def check_replica(replica: LocalObject, stamp: Stamp | None, ino: int) -> None:
    """Raises `Changed` unless a replica on this server's disk still has the stamp that the catalog knows."""
    if stamp is None or replica.stamp() != stamp:
        raise Changed(f"the replica of inode {ino} on this server is not what the catalog knows")


def _prepare(wanted: Sequence[tuple[LocalObject, Node, bytes]], locked: list[int]) -> list[Commit | None]:
    """Begins and ends the commits of objects, whose descriptors come into *locked*; None where that is not possible. Blocks."""
    begun = [_begin_locked(home.path, node, path, locked) for home, node, path in wanted]
    if not FINE_TIMES and locked:
        # Once for all of them: a tick takes longer than all that is done here.
        wait_for_next_tick(max(os.fstat(descriptor).st_ctime_ns for descriptor in locked))
    commits: list[Commit | None] = []
    for (_home, node, _path), found in zip(wanted, begun, strict=True):
        commits.append(None if found is None else end_commit(found[0], node, found[1], final=True))
    return commits


def _begin_locked(object_path: str, node: Node, path: bytes, locked: list[int]) -> tuple[int, BegunCommit] | None:
    """The object's descriptor, whose lock is held, and what its record says now."""
    try:
        descriptor = open_regular(object_path, os.O_RDONLY)
    except OSError:
        return None  # told by who tries it alone
    try:
        if try_lock(descriptor):
            commit = begin_commit(descriptor, node, path)
            locked.append(descriptor)
            return descriptor, commit
    except OSError:
        pass
    # Not kept: whoever has to take the lock would wait for it until the others are committed.
    os.close(descriptor)
    return None
