"""What the extension may tell the kernel of names and attributes without this process.

It has each answer until its deadline, or until it is dropped here: `fusefs.caching.cache` says when.
"""

import time
from collections.abc import Callable

import trio

from cluster.messages import Node
from fusefs.kernel.replies import attributes_of
from fusefs.kernel.stream import Channel

NS = 10**9


class Told:
    """Implements `fusefs.caching.cache.Told`. To be made within the event loop whose clock the deadlines are on."""

    def __init__(self, channel: Channel, now: Callable[[], float] = trio.current_time) -> None:
        self._channel = channel
        # The extension's clock first: what is read between the two makes its deadlines earlier, never later.
        monotonic_ns = time.monotonic_ns()
        self._offset_ns = monotonic_ns - int(now() * NS)

    def know(self, node: Node, until_s: float) -> None:
        """The attributes of an inode may be told until then."""
        # Of a file that is being written, size and times change without anybody being told.
        if node.dirty:
            self._channel.drop(node.ino)
        else:
            self._channel.put_attributes(node.ino, attributes_of(node), node.xattrs, self._ns(until_s))

    def tell(self, parent: int, name: bytes, ino: int, until_s: float) -> None:
        """A name that the kernel was given may be told until then; inode 0: there is none of that name."""
        self._channel.put_name(parent, name, ino, self._ns(until_s))

    def _ns(self, until_s: float) -> int:
        return int(until_s * NS) + self._offset_ns

    def drop(self, ino: int) -> None:
        """Neither the attributes of an inode nor any name in it may be told any more."""
        self._channel.drop(ino)

    def drop_name(self, parent: int, name: bytes) -> None:
        """Likewise for one name."""
        self._channel.drop_name(parent, name)

    def drop_names(self) -> None:
        """Likewise for all names."""
        self._channel.drop_names()
