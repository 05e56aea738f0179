"""What the kernel is told of the handles of files, and what it gives up."""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cluster.messages import Node
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import IoMode
from fusefs.content.passthrough import Passthrough
from fusefs.kernel.stream import OpenFlag

_FLAGS = {IoMode.PASSED: OpenFlag.PASSTHROUGH, IoMode.DIRECT: OpenFlag.DIRECT_IO, IoMode.CACHED: OpenFlag(0)}

CACHED_VERSIONS = 50_000  # inodes; of one that is forgotten, the kernel drops its pages at the next open


class KernelPages:
    """Of which version the kernel's cached pages are, for the inodes opened last, and where they are from; bounded.

    The kernel drops pages when it sees another size or mtime; this is for changes that restore both. And for a home that has lost
    power: it may have the times of a version without its content, which others have read before that was on the disk.
    """

    def __init__(self, limit: int = CACHED_VERSIONS) -> None:
        self._limit = limit
        self._pages: OrderedDict[int, tuple[int, int, str]] = OrderedDict()  # version, volume and its mount

    def opening(self, node: Node, mount: str = "") -> bool:
        """Whether pages from earlier opens may be kept; notes what the coming ones will be of. *mount*: see `Peers.mount`."""
        known = self._pages.pop(node.ino, None)
        if node.dirty:
            return False
        coming = self._pages[node.ino] = node.version, node.home_volume, mount
        if len(self._pages) > self._limit:
            self._pages.popitem(last=False)
        return known == coming

    def are_of(self, node: Node, mount: str) -> bool:
        """Whether those of the last open are."""
        return not node.dirty and self._pages.get(node.ino) == (node.version, node.home_volume, mount)


class OpenReply(NamedTuple):
    """What the kernel is told of a handle."""

    mode: IoMode
    keep_pages: bool  # those that it has from earlier opens are of this content
    backing_id: int  # of the object that it reads and writes itself; 0 if it does not

    @property
    def flags(self) -> OpenFlag:
        """Of the reply to an open of which there are no pages."""
        return _FLAGS[self.mode]


class Handles:
    """The handles of files, as the kernel has them."""

    def __init__(self, open_files: OpenFiles, passthrough: Passthrough, mount_of: Callable[[int], str]) -> None:
        """*mount_of*: of a volume's file system, see `Peers.mount`."""
        self._open_files = open_files
        self._passthrough = passthrough
        self._mount_of = mount_of
        self._pages = KernelPages()

    def reply(self, number: int) -> OpenReply:
        """What the kernel is told of a new handle. The reply follows without an await."""
        handle = self._open_files.handle(number)
        mode, backing_id = self._passthrough.opened(handle)
        node = handle.inode.node
        return OpenReply(mode, self._pages.opening(node, self._mount_of(node.home_volume)), backing_id)

    def has_pages(self, node: Node) -> bool:
        """Whether the pages that the kernel may have are of this content."""
        return self._pages.are_of(node, self._mount_of(node.home_volume))

    def ino(self, number: int) -> int:
        """What a handle is of."""
        return self._open_files.handle(number).inode.ino

    def release(self, number: int) -> None:
        """Ends a handle that the kernel gave up. What was written is committed in the background."""
        self._passthrough.released(self._open_files.release_handle(number))
