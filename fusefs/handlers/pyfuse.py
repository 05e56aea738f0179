"""pyfuse3's handlers: decode, call the overlay, encode. The only module besides the mount's entry that imports pyfuse3."""

import errno
import functools
import logging
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from cluster.clock import file_time_ns, thread_s
from cluster.counters import counters
from cluster.errors import GodwitError
from cluster.faults import faults
from cluster.messages import NAME_MAX, Node, SetAttr
from fusefs.caching.cache import EntryReply
from fusefs.content.objects import Buffer
from fusefs.content.open_inode import IoMode
from fusefs.handlers.overlay import Overlay
from fusefs.kernel.interrupts import Interrupts
from fusefs.kernel.replies import DIRECTORY_BYTES, PREFERRED_IO_BYTES
from fusefs.kernel.requests import REQUEST_S
from fusefs.kernel.stream import Channel, OpenFlag

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

BLOCK_BYTES = 4096  # in which `statfs` counts
ENCODED_MAX = 20_000  # nodes whose form for the kernel is kept


def guarded(
    handler: Callable[Concatenate["GodwitOperations", P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["GodwitOperations", P], Coroutine[Any, Any, R]]:
    """Counts the request, and turns every error of its handler into an errno: nothing that goes wrong may end the mount."""
    seconds = counters.histogram(REQUEST_S, handler.__name__)

    @functools.wraps(handler)
    async def wrapper(self: "GodwitOperations", /, *args: P.args, **kwargs: P.kwargs) -> R:
        began_s = thread_s()
        self.requests += 1  # for `godwit servers show`
        unique = self._channel.passed()  # nothing has been awaited since libfuse got it
        self._interrupts.begin(unique)
        try:
            return await handler(self, *args, **kwargs)
        except GodwitError as error:
            if error.errno == errno.EIO:
                log.error("%s failed with EIO: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            faults.unexpected(log, f"in {handler.__name__}", error)
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            self._interrupts.end(unique)
            seconds.observe(thread_s() - began_s)

    return wrapper


def encode(reply: EntryReply) -> pyfuse3.EntryAttributes:
    """Encodes a name or an inode. Raises ENOENT for a name that does not exist, if the kernel may not keep that."""
    entry = _attributes(reply.node) if reply.node is not None else pyfuse3.EntryAttributes()
    if reply.node is None:
        if reply.entry_s <= 0:
            raise pyfuse3.FUSEError(errno.ENOENT)
        entry.st_ino = 0
    entry.entry_timeout = reply.entry_s
    entry.attr_timeout = reply.attr_s
    return entry


def _groups_of(ctx: pyfuse3.RequestContext) -> set[int]:
    """The groups of the calling process, as far as this process can see them."""
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

    supports_dot_lookup = True  # FUSE_EXPORT_SUPPORT: file handles stay good when the kernel has forgotten the inode
    enable_writeback_cache = False  # a write that has returned is at the home, where others find it
    enable_acl = True  # the kernel checks ACLs, from the xattrs that it reads here

    def __init__(
        self,
        overlay: Overlay,
        channel: Channel,
        interrupts: Interrupts,
        released: Callable[[int], None],
    ) -> None:
        """*released* is called with each handle of a file that the kernel has released."""
        super().__init__()
        self.requests = 0
        self._overlay = overlay
        self._channel = channel
        self._interrupts = interrupts
        self._released = released

    def init(self) -> None:
        """The kernel's FUSE_INIT is about to be answered."""
        self._channel.begun.set()

    # ---------------------------------------------------------- names and attributes

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return encode(await self._overlay.lookups.lookup(parent_inode, name))

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return encode(await self._overlay.lookups.getattr(inode))

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
        return encode(await self._overlay.set_attributes.setattr(change, size, ctx.uid))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Inode numbers need no state here: nothing is to be forgotten."""

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._overlay.lookups.readlink(inode)

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if stat.S_ISREG(mode):
            return encode(await self._overlay.creation.make_regular(parent_inode, name, mode, ctx.umask, ctx.uid, ctx.gid))
        return encode(await self._overlay.creation.make(parent_inode, name, mode, ctx.umask, ctx.uid, ctx.gid, rdev=rdev))

    @guarded
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return encode(await self._overlay.creation.make(parent_inode, name, mode, ctx.umask, ctx.uid, ctx.gid))

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return encode(await self._overlay.creation.make(parent_inode, name, mode, 0, ctx.uid, ctx.gid, target=target))

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return encode(await self._overlay.namespace.link(inode, new_parent_inode, new_name))

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._overlay.namespace.unlink(parent_inode, name)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._overlay.namespace.rmdir(parent_inode, name)

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
        await self._overlay.namespace.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # ---------------------------------------------------------- files

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        number = await self._overlay.opener.open(inode, flags, ctx.uid)
        return self._opened(number)

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        number, reply = await self._overlay.creation.create(parent_inode, name, mode, ctx.umask, ctx.uid, ctx.gid, flags)
        return self._opened(number), encode(reply)

    def _opened(self, number: int) -> pyfuse3.FileInfo:
        """Encodes the reply to an open. The extension adds what libfuse does not know (`Channel.will_open`)."""
        reply = self._overlay.handles.reply(number)
        if reply.backing_id:
            self._channel.will_open(number, OpenFlag.PASSTHROUGH, reply.backing_id)
        keep = reply.keep_pages and reply.mode is IoMode.CACHED
        return pyfuse3.FileInfo(fh=number, keep_cache=keep, direct_io=reply.mode is IoMode.DIRECT)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> Buffer:  # type: ignore[override]  # takes any buffer
        return await self._overlay.files.read(fh, off, size)

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        await self._overlay.set_id_bits.before_write(self._overlay.handles.ino(fh))
        return await self._overlay.files.write(fh, off, buf)

    @guarded
    async def flush(self, fh: int) -> None:
        """Every write has been answered with its own result already: there is nothing left that close could report."""

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._overlay.files.fsync(fh, data_only=datasync)

    def dropped(self, directory: bool, fh: int) -> None:
        """Releases what was opened for a program that had been interrupted: the kernel never got the handle."""
        if directory:
            self._overlay.directories.releasedir(fh)
        else:
            self._overlay.handles.release(fh)
            self._released(fh)

    @guarded
    async def release(self, fh: int) -> None:
        self._overlay.handles.release(fh)
        self._released(fh)

    # ---------------------------------------------------------- directories

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        number = await self._overlay.directories.opendir(inode)
        self._channel.will_open(number, self._overlay.directories.flags(number), directory=True)
        return number

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for name, cookie, reply in await self._overlay.directories.page(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, encode(reply), cookie):
                return

    @guarded
    async def releasedir(self, fh: int) -> None:
        self._overlay.directories.releasedir(fh)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._overlay.directories.sync(fh)

    # ---------------------------------------------------------- extended attributes and the rest

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._overlay.xattrs.setxattr(inode, name, value, ctx.uid, lambda: _groups_of(ctx))

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._overlay.xattrs.getxattr(inode, name, ctx.uid)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._overlay.xattrs.listxattr(inode, ctx.uid)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._overlay.xattrs.removexattr(inode, name)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space = await self._overlay.lookups.space()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_BYTES
        data.f_blocks = space.total_bytes // BLOCK_BYTES
        data.f_bfree = data.f_bavail = space.free_bytes // BLOCK_BYTES
        data.f_ffree = data.f_favail = space.free_bytes // BLOCK_BYTES
        data.f_files = space.inodes + data.f_ffree
        data.f_namemax = NAME_MAX
        return data
