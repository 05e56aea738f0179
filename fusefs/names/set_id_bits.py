"""Takes the set-id bits away that Linux takes away, where the kernel leaves that to the mount (FUSE_HANDLE_KILLPRIV_V2)."""

import stat

import msgspec

from cluster.clock import file_time_ns
from cluster.messages import SetAttr
from fusefs.caching.cache import Caching
from fusefs.caching.changes import Changes
from fusefs.content.open_files import OpenFiles
from fusefs.content.privileges import has_set_id, without_set_id
from fusefs.kernel.stream import Channel, InitFlag
from fusefs.names.lookups import Lookups


class SetIdBits:
    """Knows the bits of inodes, and clears them in the catalog."""

    def __init__(self, channel: Channel, lookups: Lookups, changes: Changes, caching: Caching, open_files: OpenFiles) -> None:
        self._channel = channel
        self._lookups = lookups
        self._changes = changes
        self._caching = caching
        self._open_files = open_files

    def are_left_to_us(self) -> bool:
        """Whether the kernel does not clear them by itself."""
        return InitFlag.HANDLE_KILLPRIV_V2 in self._channel.granted

    async def without(self, change: SetAttr, size: int | None, uid: int) -> SetAttr:
        """The change with what Linux does besides: another owner, or a truncation that is not root's, takes the bits."""
        if not _may_take(change, size, uid):
            return change
        return self.without_known(change, size, uid, (await self._lookups.node(change.ino))[0].mode)

    def without_known(self, change: SetAttr, size: int | None, uid: int, mode: int) -> SetAttr:
        """As `without`, where the inode has this mode."""
        drops = _may_take(change, size, uid) and not stat.S_ISDIR(mode) and has_set_id(mode)
        return msgspec.structs.replace(change, mode=without_set_id(mode)) if drops else change

    async def clear(self, ino: int) -> None:
        """Asks nobody if it is known that there are none."""
        mode = (await self._lookups.node(ino))[0].mode
        if has_set_id(mode):
            await self._changes.apply(SetAttr(ino, file_time_ns(), mode=without_set_id(mode)), ino)

    def are_known_clear(self, ino: int) -> bool:
        """Whether there are certainly none at this moment."""
        kept = self._caching.node(ino)
        return kept is not None and not has_set_id(kept[0].mode)

    async def before_write(self, ino: int) -> None:
        """Clears them if the write that follows does. Where nothing of the inode may be cached here, those count that it had
        when it was opened, or has got on this mount since."""
        # The kernel says it with each write that is not root's; the extension has noted it, since pyfuse3 does not pass it on.
        if self._channel.kills_set_id(ino) and (state := self._open_files.get(ino)) is not None:
            kept = self._caching.node(ino)
            mode = (kept[0] if kept else state.node).mode
            if has_set_id(mode):
                changed = await self._changes.apply(SetAttr(ino, file_time_ns(), mode=without_set_id(mode)), ino)
                state.answered(changed.made)


def _may_take(change: SetAttr, size: int | None, uid: int) -> bool:
    """Whether a change takes the bits that there are."""
    owner = change.uid is not None or change.gid is not None
    return change.mode is None and (owner or (size is not None and uid != 0))
