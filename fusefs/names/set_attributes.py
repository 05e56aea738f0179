"""Changes of attributes, and of a file's length: in the catalog, and for the times of a dirty file at its home."""

import stat

import msgspec

from cluster.messages import Node, Operation, SetAttr
from fusefs.caching.cache import Caching, EntryReply
from fusefs.caching.changes import Changes
from fusefs.caching.grants import NOTHING, Permit
from fusefs.content.files import Files
from fusefs.content.last_paths import LastKnownPaths
from fusefs.names.lookups import Lookups
from fusefs.names.set_id_bits import SetIdBits


class SetAttributes:
    """Changes attributes. Raises `GodwitError`."""

    def __init__(
        self,
        changes: Changes,
        caching: Caching,
        lookups: Lookups,
        set_id_bits: SetIdBits,
        files: Files,
        paths: LastKnownPaths,
    ) -> None:
        self._changes = changes
        self._caching = caching
        self._lookups = lookups
        self._set_id_bits = set_id_bits
        self._files = files
        self._paths = paths

    async def setattr(self, change: SetAttr, size: int | None, uid: int) -> EntryReply:
        """Changes attributes for *uid* and, if *size* is given, the length of the file, which goes first."""
        if self._set_id_bits.are_left_to_us():
            change = await self._set_id_bits.without(change, size, uid)
        if size is not None:
            await self._files.truncate(change.ino, size)
        if not _changes_something(change):
            return _with_other_time(await self._lookups.getattr(change.ino)).to_ask_again()
        node, permit = await self._set(change)
        present, permit = await self._lookups.glance(node, permit)
        return self._reply(present, permit)

    def setattr_known(self, change: SetAttr, uid: int) -> EntryReply | None:
        """As `setattr` without a size, without a task; None, and nothing has changed, if somebody has to be asked."""
        kept = self._caching.node(change.ino)
        if kept is None or not _changes_something(change) or self._lookups.at_once(kept[0]) is None:
            return None
        if change.mtime_ns is not None and (kept[0].dirty or self._files.written_here(change.ino) is not None):
            return None  # the object gets it, too
        if self._set_id_bits.are_left_to_us():
            change = self._set_id_bits.without_known(change, None, uid, kept[0].mode)
        changed = self._changes.apply_known(change)
        present = None if changed is None else self._lookups.at_once(changed.made)
        return None if changed is None or present is None else self._reply(present, changed.permit)

    def _reply(self, present: Node, permit: Permit) -> EntryReply:
        return _with_other_time(self._caching.entry_reply(present, permit.until_s(present.ino))).to_ask_again()

    async def _set(self, change: SetAttr) -> tuple[Node, Permit]:
        """Sets them in the catalog and, while the file is dirty, on its object: at once, if the object is open here."""
        permit = NOTHING

        async def apply(operation: Operation) -> Node:
            nonlocal permit
            changed = await self._changes.apply(operation, change.ino, near=self._paths.parent(change.ino))
            permit = changed.permit
            return changed.made

        # The catalog's times count when the file is clean, the object's while it is dirty: it may become either at any moment.
        home = self._files.written_here(change.ino) if change.mtime_ns is not None else None
        node = await (apply(change) if home is None else home.set_times(change, apply))
        if home is None and node.dirty and change.mtime_ns is not None:
            node = await self._files.set_times(node, change)
        return node, permit


def _changes_something(change: SetAttr) -> bool:
    return not change.mode is change.uid is change.gid is change.atime_ns is change.mtime_ns is None


def _with_other_time(reply: EntryReply) -> EntryReply:
    """What the kernel is told of a regular file whose attributes it may not keep: a time that the file does not have.

    The kernel takes the time of this answer over without looking at its pages, so that what another server wrote just before
    would go unnoticed. Like this it finds another time when it asks next, and drops them.
    """
    if reply.attr_s or reply.node is None or not stat.S_ISREG(reply.node.mode):
        return reply
    return reply._replace(node=msgspec.structs.replace(reply.node, mtime_ns=reply.node.mtime_ns - 1))
