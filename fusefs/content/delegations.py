"""Which files the extension opens and closes by itself, without this process: see docs/open-files.md, *Delegated opens*.

A file whose registration lingers is delegated if its home's object is passed through, or the kernel has pages of its present
content: then an open to read changes nothing that the manager or the catalog would have to know, and its answer is always the
same. Whatever else happens to the inode takes it back first (`OpenFiles.take_back`), and what is open by then becomes handles
like all others.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import trio

from cluster.errors import error_text
from cluster.messages import Node
from fusefs.caching.cache import Caching
from fusefs.content.local_object import LocalObject
from fusefs.content.open_inode import Backing, IoMode, OpenInode
from fusefs.content.passthrough import Passthrough
from fusefs.kernel.stream import Channel, Delegation, OpenFlag

log = logging.getLogger(__name__)

NS = 10**9


class Ended(NamedTuple):
    """A delegation that was taken back."""

    mode: IoMode  # of the handles
    backing: Backing | None  # for the handles; or for `Delegations.give_up` if there are none
    handles: list[int]  # of what is open


class _Delegated(NamedTuple):
    backing: Backing | None  # None: through the page cache
    descriptor: int  # of a home's object here, for as long as the extension looks at it; -1 of a home elsewhere
    home_epoch: int  # under which it is the home
    volume: int  # that has it

    @property
    def mode(self) -> IoMode:
        return IoMode.CACHED if self.backing is None else IoMode.PASSED


class Delegations:
    """The inodes that are delegated. *is_sound* says of a volume whether its files may be read there; *use* is told of each
    inode that was opened, so that its lease is renewed; *has_pages* says whether the kernel's pages are of a node's content."""

    def __init__(
        self,
        channel: Channel,
        passthrough: Passthrough,
        caching: Caching,
        is_sound: Callable[[int], bool],
        use: Callable[[int], object],
        has_pages: Callable[[Node], bool],
    ) -> None:
        self._channel = channel
        self._passthrough = passthrough
        self._caching = caching
        self._is_sound = is_sound
        self._use = use
        self._has_pages = has_pages
        self._delegated: dict[int, _Delegated] = {}  # by inode number

    def begin(self, state: OpenInode) -> None:
        """Delegates an inode that nobody has open here, if its opens can be answered without asking anybody."""
        ino, home, node = state.ino, state.home, state.node
        if ino in self._delegated or not self._is_sound(node.home_volume):
            return
        descriptor = -1
        if isinstance(home, LocalObject):
            try:
                descriptor = os.dup(home.descriptor)
            except OSError as error:
                log.info("inode %d is not delegated: %s", ino, error_text(error))
                return
        backing = self._passthrough.backing_for(state)
        # A home elsewhere may not have been reached yet: then no epoch is known to be that of an object.
        home_epoch = node.home_epoch if home is None else state.home_epoch
        self._delegated[ino] = _Delegated(backing, descriptor, home_epoch, node.home_volume)
        if not (backing or self._has_pages(node)) or not self._renew(ino):
            self._forget(ino)
            self.give_up(backing)

    def _renew(self, ino: int) -> bool:
        """Tells the extension until when, and of what content: by the lease and the node that are kept at this moment."""
        kept, delegated = self._caching.node(ino), self._delegated[ino]
        if kept is None:
            return False
        node, permit = kept
        # Without a version, or while it is written, anything may be in the object.
        if node.dirty or not node.version or node.home_epoch != delegated.home_epoch:
            return False
        until_ns = time.monotonic_ns() + int((permit.until_s(ino) - trio.current_time()) * NS)
        backing, descriptor = delegated.backing, delegated.descriptor
        flags, number = (OpenFlag.KEEP_CACHE, 0) if backing is None else (OpenFlag.PASSTHROUGH, backing.number)
        if backing is None and not self._has_pages(node):
            return False
        answer = Delegation(descriptor, flags, number, node.size, node.object_ctime_ns, until_ns)
        return self._channel.delegate(ino, answer)

    def _forget(self, ino: int) -> _Delegated:
        delegated = self._delegated.pop(ino)
        if delegated.descriptor >= 0:
            os.close(delegated.descriptor)
        return delegated

    def end(self, ino: int) -> Ended | None:
        """Takes a delegation back; None if there is none."""
        if ino not in self._delegated:
            return None
        # First: the extension looks at the descriptor until then.
        handles = self._channel.take_back(ino)
        delegated = self._forget(ino)
        return Ended(delegated.mode, delegated.backing, handles)

    def give_up(self, backing: Backing | None) -> None:
        """No handle needs it."""
        if backing is not None:
            self._channel.close_backing(backing.number)

    def inode_of(self, handle: int) -> int:
        """What a handle is of that the extension has given to the kernel; 0 if it has not."""
        return self._channel.delegated_inode(handle)

    def inodes(self) -> list[int]:
        """All that are delegated."""
        return list(self._delegated)

    def used(self) -> list[int]:
        """Those that are open, or were since this was asked last: for as long as their leases last, they may be opened on."""
        used = self._channel.used_inodes()
        for ino in used:
            self._use(ino)
            self._renew(ino)
        unsound = {volume for volume in {one.volume for one in self._delegated.values()} if not self._is_sound(volume)}
        # The next open is Python's, which finds another copy.
        for ino in [ino for ino, one in self._delegated.items() if one.volume in unsound]:
            self._channel.suspend(ino)
        return used
