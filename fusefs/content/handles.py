"""What the kernel is told of the handles of files, and what it gives up."""

from collections import OrderedDict
from typing import NamedTuple

from cluster.messages import Node
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import IoMode
from fusefs.content.passthrough import Passthrough

CACHED_VERSIONS = 50_000  # inodes; of one that is forgotten, the kernel drops its pages at the next open


class KernelPages:
    """Of which version the kernel's cached pages are, for the inodes opened last; bounded.

    The kernel drops pages when it sees another size or mtime; this is for changes that restore both.
    """

    def __init__(self, limit: int = CACHED_VERSIONS) -> None:
        self._limit = limit
        self._versions: OrderedDict[int, int] = OrderedDict()

    def opening(self, node: Node) -> bool:
        """Whether pages from earlier opens may be kept; notes what the coming ones will be of."""
        known = self._versions.pop(node.ino, None)
        if node.dirty:
            return False
        self._versions[node.ino] = node.version
        if len(self._versions) > self._limit:
            self._versions.popitem(last=False)
        return known == node.version


class OpenReply(NamedTuple):
    """What the kernel is told of a handle."""

    mode: IoMode
    keep_pages: bool  # those that it has from earlier opens are of this content
    backing_id: int  # of the object that it reads and writes itself; 0 if it does not


class Handles:
    """The handles of files, as the kernel has them."""

    def __init__(self, open_files: OpenFiles, passthrough: Passthrough) -> None:
        self._open_files = open_files
        self._passthrough = passthrough
        self._pages = KernelPages()

    def reply(self, number: int) -> OpenReply:
        """What the kernel is told of a new handle. The reply follows without an await."""
        handle = self._open_files.handle(number)
        mode, backing_id = self._passthrough.opened(handle)
        return OpenReply(mode, self._pages.opening(handle.inode.node), backing_id)

    def ino(self, number: int) -> int:
        """What a handle is of."""
        return self._open_files.handle(number).inode.ino

    def release(self, number: int) -> None:
        """Ends a handle that the kernel gave up. What was written is committed in the background."""
        self._passthrough.released(self._open_files.release_handle(number))
