"""Changes of names and attributes that this mount makes by itself, in the step in which the kernel's request is read.

As in `fusefs.handlers.quick`: what somebody has to be asked for goes to pyfuse3.
"""

import stat
import struct

from cluster.clock import file_time_ns
from cluster.messages import SetAttr
from fusefs.caching.cache import EntryReply
from fusefs.handlers.overlay import Overlay
from fusefs.kernel.replies import attributes, entry, opened
from fusefs.kernel.requests import Opcode, QuickHandler, Raw

# What comes before the names in each request.
_CREATE_IN = struct.Struct("<IIII")  # flags, mode, umask, further flags
_MKNOD_IN = struct.Struct("<IIII")  # mode, device, umask, padding
_MKDIR_IN = struct.Struct("<II")  # mode, umask
_LINK_IN = struct.Struct("<Q")  # inode
_RENAME_IN = struct.Struct("<Q")  # new directory
_RENAME2_IN = struct.Struct("<QII")  # new directory, flags, padding
_SETATTR_IN = struct.Struct("<I4x24xqq8xII4xI4xII4x")  # what is set; times in seconds, their nanoseconds; mode, uid, gid

_SETS_MODE, _SETS_UID, _SETS_GID, _SETS_SIZE, _SETS_ATIME, _SETS_MTIME = (1 << bit for bit in range(6))
_SETS_ATIME_NOW, _SETS_MTIME_NOW = 1 << 7, 1 << 8

_SYMLINK_MODE = stat.S_IFLNK | 0o777
NS = 10**9


class QuickChanges:
    """The handlers."""

    def __init__(self, overlay: Overlay) -> None:
        self._creation = overlay.creation
        self._namespace = overlay.namespace
        self._set_attributes = overlay.set_attributes
        self._handles = overlay.handles

    def handlers(self) -> dict[Opcode, QuickHandler]:
        """By opcode."""
        return {
            Opcode.CREATE: self.create,
            Opcode.MKNOD: self.mknod,
            Opcode.MKDIR: self.mkdir,
            Opcode.SYMLINK: self.symlink,
            Opcode.LINK: self.link,
            Opcode.UNLINK: self.unlink,
            Opcode.RMDIR: self.rmdir,
            Opcode.RENAME: self.rename,
            Opcode.RENAME2: self.rename2,
            Opcode.SETATTR: self.setattr,
        }

    def create(self, request: Raw) -> bytes | None:
        flags, mode, umask, _ = _CREATE_IN.unpack_from(request.body)
        name = request.body[_CREATE_IN.size : -1]
        created = self._creation.create_known(request.ino, name, mode, umask, request.uid, request.gid, flags)
        if created is None:
            return None
        number, made = created
        reply = self._handles.reply(number)
        return entry(made) + opened(number, reply.flags, reply.backing_id)

    def mknod(self, request: Raw) -> bytes | None:
        mode, rdev, umask, _ = _MKNOD_IN.unpack_from(request.body)
        if stat.S_ISREG(mode):
            return None
        name = request.body[_MKNOD_IN.size : -1]
        return _entry(self._creation.make_known(request.ino, name, mode, umask, request.uid, request.gid, rdev=rdev))

    def mkdir(self, request: Raw) -> bytes | None:
        mode, umask = _MKDIR_IN.unpack_from(request.body)
        mode = stat.S_IFDIR | stat.S_IMODE(mode)
        name = request.body[_MKDIR_IN.size : -1]
        return _entry(self._creation.make_known(request.ino, name, mode, umask, request.uid, request.gid))

    def symlink(self, request: Raw) -> bytes | None:
        name, target = _two_names(request.body)
        made = self._creation.make_known(request.ino, name, _SYMLINK_MODE, 0, request.uid, request.gid, target=target)
        return _entry(made)

    def link(self, request: Raw) -> bytes | None:
        (ino,) = _LINK_IN.unpack_from(request.body)
        return _entry(self._namespace.link_known(ino, request.ino, request.body[_LINK_IN.size : -1]))

    def unlink(self, request: Raw) -> bytes | None:
        return b"" if self._namespace.unlink_known(request.ino, request.body[:-1]) else None

    def rmdir(self, request: Raw) -> bytes | None:
        return b"" if self._namespace.rmdir_known(request.ino, request.body[:-1]) else None

    def rename(self, request: Raw) -> bytes | None:
        (new_parent,) = _RENAME_IN.unpack_from(request.body)
        return self._rename(request, new_parent, 0, request.body[_RENAME_IN.size :])

    def rename2(self, request: Raw) -> bytes | None:
        new_parent, flags, _ = _RENAME2_IN.unpack_from(request.body)
        return self._rename(request, new_parent, flags, request.body[_RENAME2_IN.size :])

    def _rename(self, request: Raw, new_parent: int, flags: int, names: bytes) -> bytes | None:
        name, new_name = _two_names(names)
        return b"" if self._namespace.rename_known(request.ino, name, new_parent, new_name, flags) else None

    def setattr(self, request: Raw) -> bytes | None:
        sets, atime_s, mtime_s, atime_ns, mtime_ns, mode, uid, gid = _SETATTR_IN.unpack_from(request.body)
        if sets & _SETS_SIZE:
            return None
        now_ns = file_time_ns()
        change = SetAttr(
            request.ino,
            now_ns,
            mode=stat.S_IMODE(mode) if sets & _SETS_MODE else None,
            uid=uid if sets & _SETS_UID else None,
            gid=gid if sets & _SETS_GID else None,
            atime_ns=_time(sets & _SETS_ATIME, sets & _SETS_ATIME_NOW, atime_s, atime_ns, now_ns),
            mtime_ns=_time(sets & _SETS_MTIME, sets & _SETS_MTIME_NOW, mtime_s, mtime_ns, now_ns),
        )
        reply = self._set_attributes.setattr_known(change, request.uid)
        return None if reply is None else attributes(reply)


def _entry(reply: EntryReply | None) -> bytes | None:
    return None if reply is None else entry(reply)


def _two_names(names: bytes) -> tuple[bytes, bytes]:
    """Each ends with a zero."""
    first, second, _rest = names.split(b"\0", 2)
    return first, second


def _time(is_set: int, is_now: int, seconds: int, nanoseconds: int, now_ns: int) -> int | None:
    if is_now:
        return now_ns
    return seconds * NS + nanoseconds if is_set else None
