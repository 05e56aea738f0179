"""The last known path of an inode, from the names that went through this mount.

It labels objects for people and for `godwit rebuild`, and says where it may pay to be alone; nothing else is decided by it.
Bounded, and may be out of date.
"""

from collections import OrderedDict

from cluster.messages import ROOT_INO

MAX_NAMES = 20_000  # inodes, directories on their paths included
MAX_DEPTH = 256  # a rename that was missed may have made a circle of what is remembered


class LastKnownPaths:
    """Remembers by which name each inode came last, for the most recent ones."""

    def __init__(self, limit: int = MAX_NAMES) -> None:
        self._limit = limit
        self._names: OrderedDict[int, tuple[int, bytes]] = OrderedDict()

    def note(self, ino: int, parent: int, name: bytes) -> None:
        """*ino* is called *name* in the directory *parent*."""
        self._names[ino] = (parent, name)
        self._names.move_to_end(ino)
        if len(self._names) > self._limit:
            self._names.popitem(last=False)

    def parent(self, ino: int) -> int:
        """The directory in which it had its last name; 0 if that is not known."""
        return self._names.get(ino, (0, b""))[0]

    def path(self, ino: int) -> bytes:
        """The path below the mount, or empty if a part of it is not known any more."""
        parts: list[bytes] = []
        while ino != ROOT_INO:
            if ino not in self._names or len(parts) >= MAX_DEPTH:
                return b""
            ino, name = self._names[ino]
            parts.append(name)
        return b"/" + b"/".join(reversed(parts))
