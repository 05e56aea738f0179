"""pyfuse3's handlers: decode, call the overlay, encode. The only module besides the mount's entry that imports pyfuse3."""

import errno
import functools
import logging
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from cluster.clock import file_time_ns
from cluster.errors import GodwitError
from cluster.messages import NAME_MAX, Node, SetAttr
from fusefs.caching.cache import Seen
from fusefs.files import Files
from fusefs.kernel.replies import DIRECTORY_BYTES, PREFERRED_IO_BYTES
from fusefs.kernel.stream import Channel, OpenFlag
from fusefs.names.listings import Directories
from fusefs.namespace import Namespace
from fusefs.objects import Buffer
from fusefs.openfiles import Way

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

BLOCK_BYTES = 4096
ENCODED_MAX = 20_000


def guarded(
    handler: Callable[Concatenate["GodwitOperations", P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["GodwitOperations", P], Coroutine[Any, Any, R]]:
    """Counts the request, and turns every error of its handler into an errno: nothing that goes wrong may end the mount."""

    @functools.wraps(handler)
    async def wrapper(self: "GodwitOperations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.requests += 1
        try:
            return await handler(self, *args, **kwargs)
        except GodwitError as error:
            if error.errno == errno.EIO:
                log.error("%s failed with EIO: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("unexpected error in %s", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapper


def encode(seen: Seen) -> pyfuse3.EntryAttributes:
    """What the kernel is told of a name or an inode. Raises ENOENT for a name that does not exist and may not be kept."""
    entry = _attributes(seen.node) if seen.node is not None else pyfuse3.EntryAttributes()
    if seen.node is None:
        if seen.entry_s <= 0:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry.st_ino = 0
    entry.entry_timeout = seen.entry_s
    entry.attr_timeout = seen.attr_s
    return entry


def _groups_of(ctx: pyfuse3.RequestContext) -> set[int]:
    """The groups that the caller is in, as far as it can be seen from here."""
    try:
        return {ctx.gid, *pyfuse3.get_sup_groups(ctx.pid)}
    except OSError:
        return {ctx.gid}


@functools.lru_cache(maxsize=ENCODED_MAX)
def _attributes(node: Node) -> pyfuse3.EntryAttributes:
    """The kernel's form of a node; the same object each time, into which the timeouts are put just before it is sent."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node.ino
    entry.generation = 0
    entry.st_mode = node.mode
    entry.st_nlink = node.nlink
    entry.st_uid = node.uid
    entry.st_gid = node.gid
    entry.st_rdev = node.rdev
    entry.st_size = DIRECTORY_BYTES if stat.S_ISDIR(node.mode) else node.size
    entry.st_blksize = PREFERRED_IO_BYTES
    entry.st_blocks = DIRECTORY_BYTES // 512 if stat.S_ISDIR(node.mode) else node.blocks
    entry.st_atime_ns = node.atime_ns
    entry.st_mtime_ns = node.mtime_ns
    entry.st_ctime_ns = node.ctime_ns
    return entry


class GodwitOperations(pyfuse3.Operations):
    """The file system as pyfuse3 wants it."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        namespace: Namespace,
        files: Files,
        directories: Directories,
        channel: Channel,
        released: Callable[[int], None],
    ) -> None:
        """*released* is told of each handle of a file that the kernel has given up."""
        super().__init__()
        self.requests = 0
        self._namespace = namespace
        self._files = files
        self._directories = directories
        self._channel = channel
        self._released = released

    def init(self) -> None:
        """The kernel's FUSE_INIT is about to be answered."""
        self._channel.begun.set()

    # ---------------------------------------------------------- names and attributes

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return encode(await self._namespace.lookup(parent_inode, name))

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return encode(await self._namespace.getattr(inode))

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        change = SetAttr(
            inode,
            file_time_ns(),
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        size = attr.st_size if fields.update_size else None
        return encode(await self._namespace.setattr(change, size, ctx.uid))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inode numbers need no state here: nothing is to be forgotten."""

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._namespace.readlink(inode)

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if stat.S_ISREG(mode):
            return encode(await self._files.make_regular(parent_inode, name, mode, ctx.uid, ctx.gid))
        return encode(await self._namespace.make(parent_inode, name, mode, ctx.uid, ctx.gid, rdev=rdev))

    @guarded
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return encode(await self._namespace.make(parent_inode, name, mode, ctx.uid, ctx.gid))

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return encode(await self._namespace.make(parent_inode, name, mode, ctx.uid, ctx.gid, target=target))

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return encode(await self._namespace.link(inode, new_parent_inode, new_name))

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._namespace.unlink(parent_inode, name)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._namespace.rmdir(parent_inode, name)

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._namespace.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # ---------------------------------------------------------- files

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        number = await self._files.open(inode, flags, ctx.uid)
        return self._opened(number)

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        number, seen = await self._files.create(parent_inode, name, mode, ctx.uid, ctx.gid, flags)
        return self._opened(number), encode(seen)

    def _opened(self, number: int) -> pyfuse3.FileInfo:
        """The reply to an open; what libfuse knows nothing of is added to it on the way."""
        told = self._files.tell_kernel(number)
        if told.backing_id:
            self._channel.will_open(number, OpenFlag.PASSTHROUGH, told.backing_id)
        keep = told.keep_pages and told.way is Way.CACHED
        return pyfuse3.FileInfo(fh=number, keep_cache=keep, direct_io=told.way is Way.DIRECT)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]  # takes any buffer
        return await self._files.read(fh, off, size)

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        await self._namespace.before_write(self._files.ino_of(fh))
        return await self._files.write(fh, off, buf)

    @guarded
    async def flush(self, fh: int) -> None:
        """Every write has been answered with its own result already: there is nothing left that close could report."""

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(fh, data_only=datasync)

    @guarded
    async def release(self, fh: int) -> None:
        self._files.release(fh)
        self._released(fh)

    # ---------------------------------------------------------- directories

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        number = await self._directories.opendir(inode)
        self._channel.will_open(number, self._directories.flags(number), directory=True)
        return number

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for name, cookie, seen in await self._directories.page(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, encode(seen), cookie):
                return

    @guarded
    async def releasedir(self, fh: int) -> None:
        self._directories.releasedir(fh)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._directories.sync()

    # ---------------------------------------------------------- extended attributes and the rest

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._namespace.setxattr(inode, name, value, ctx.uid, lambda: _groups_of(ctx))

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._namespace.getxattr(inode, name, ctx.uid)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._namespace.listxattr(inode, ctx.uid)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._namespace.removexattr(inode, name)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space = await self._namespace.space()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_BYTES
        data.f_blocks = space.total_bytes // BLOCK_BYTES
        data.f_bfree = data.f_bavail = space.free_bytes // BLOCK_BYTES
        data.f_ffree = data.f_favail = space.free_bytes // BLOCK_BYTES
        data.f_files = space.inodes + data.f_ffree
        data.f_namemax = NAME_MAX
        return data
