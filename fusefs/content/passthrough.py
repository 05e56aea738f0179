"""How the kernel reads and writes each open file: on the home's object itself where that is on this server's disk.

The kernel's rules (fs/fuse/iomode.c): page-cached and passed-through handles of one inode exclude each other, all passed-through
ones share one backing id, and `DIRECT` ones go with either. So the first handle decides, until the last of its kind is released.
What is passed through cannot be taken back: the manager leaves the home where it is as long as its server has the file open.
"""

import os
from collections.abc import Callable, Sequence

import trio

from cluster.volume.fence import stops_writers
from cluster.volume.regular import open_regular
from fusefs.content.local_object import LocalObject
from fusefs.content.open_inode import Backing, Handle, IoMode, OpenInode
from fusefs.kernel.stream import Channel, InitFlag

TRY_AGAIN_S = 1.0  # a volume that may be mounted at any moment
NO_FENCE = "programs cannot be stopped from writing there when a lease has ended (see [mount] unfenced)"


class Passthrough:
    """Decides for each handle that the kernel is about to get.

    Who has a file open that is passed through can be stopped only by the fence. So volumes without one are left out, unless
    *unfenced*. *has_fence* says of a directory's file system whether it has one, None while nobody knows.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        unfenced: bool = False,
        has_fence: Callable[[str], bool | None] = stops_writers,
        try_again_s: float = TRY_AGAIN_S,
    ) -> None:
        self._channel = channel
        self._unfenced = unfenced
        self._has_fence = has_fence
        self._try_again_s = try_again_s
        self._fenced: set[int] = set()  # file systems that are known to have one

    async def try_volumes(self, roots: Sequence[str]) -> None:
        """Finds out, once the kernel has begun, whether the files of these volumes can be passed through: somebody may ask."""
        await self._channel.begun.wait()
        async with trio.open_nursery() as nursery:
            for root in roots:
                nursery.start_soon(self._try_until_known, root)

    async def _try_until_known(self, root: str) -> None:
        """A disk may be away, or hang: that is no reason not to stop."""
        while not await trio.to_thread.run_sync(self._try_volume, root, abandon_on_cancel=True):
            await trio.sleep(self._try_again_s)

    def _try_volume(self, root: str) -> bool:
        """False if that has to be tried again."""
        path = f"{root}/volume.toml"
        try:
            descriptor = open_regular(path, os.O_RDONLY)
        except OSError:
            return False
        try:
            volume = os.fstat(descriptor).st_dev
            backing_id = self._channel.open_backing(descriptor, volume)  # of any file of the file system: all are alike to it
            if backing_id:
                self._channel.close_backing(backing_id)
                if self._may_pass(volume, path) is None:
                    return False
            self._channel.tried(root, volume)
        finally:
            os.close(descriptor)
        return True

    def _may_pass(self, volume: int, path: str) -> bool | None:
        """Whether the file system of the file at *path* has a fence, or needs none; None while nobody knows."""
        if self._unfenced or volume in self._fenced:
            return True
        has_fence = self._has_fence(os.path.dirname(path))
        if has_fence:
            self._fenced.add(volume)
        elif has_fence is False:
            self._channel.refuse(volume, NO_FENCE)
        return has_fence

    def opened(self, handle: Handle) -> tuple[IoMode, int]:
        """How the kernel is to use this handle, of which it hears at once; with `PASSED`, by which backing id (else 0)."""
        mode, backing = self._choose(handle)
        handle.given_to_kernel(mode, backing)
        return mode, 0 if backing is None else backing.number

    def _choose(self, handle: Handle) -> tuple[IoMode, Backing | None]:
        home = handle.inode.home if isinstance(handle.inode.home, LocalObject) else None
        io = handle.inode.io
        if io.backing is not None:
            # The kernel takes no second backing object, and no page cache, beside the first.
            is_same = home is not None and _identity(home) == (io.backing.device, io.backing.ino)
            return (IoMode.PASSED, io.backing) if is_same else (IoMode.DIRECT, None)
        # Not beside handles that go through the page cache.
        if io.mode is None and home is not None and (backing := self._open_backing(home)) is not None:
            return IoMode.PASSED, backing
        return (IoMode.DIRECT if self._goes_around(handle, home) else IoMode.CACHED), None

    def backing_for(self, state: OpenInode) -> Backing | None:
        """A backing object for handles to come of an inode that has none; None if they are not passed through."""
        home = state.home
        if state.io.mode is not None or not isinstance(home, LocalObject):
            return None
        return self._open_backing(home)

    def _open_backing(self, home: LocalObject) -> Backing | None:
        if home.is_silent:
            return None  # the kernel would wait for the disk, this mount gives up after a while
        # The kernel keeps a reference of its own to the file behind the descriptor, which may be closed then.
        device, ino = _identity(home)
        number = self._channel.open_backing(home.descriptor, device)
        if not number:
            return None
        if not self._may_pass(device, home.path):
            self._channel.close_backing(number)
            return None
        return Backing(number, device, ino)

    def _goes_around(self, handle: Handle, home: LocalObject | None) -> bool:
        """Appending goes around the page cache: through it, the kernel splits a write where it believes a page to end, and the
        parts could come apart between those of other servers. So do writing to another server, whose order with the writes of
        others is known only there, and reading what is written there: the kernel takes a new size over before it drops the last
        page, behind whose old end there are zeros. These two only if the kernel can map such files.
        """
        if handle.append:
            return True
        written_elsewhere = home is None and (handle.write or handle.inode.node.dirty)
        return written_elsewhere and InitFlag.DIRECT_IO_ALLOW_MMAP in self._channel.granted

    def released(self, handle: Handle) -> None:
        """The kernel has given the handle up."""
        unused = handle.given_up_by_kernel()
        if unused is not None:
            self._channel.close_backing(unused.number)


def _identity(home: LocalObject) -> tuple[int, int]:
    status = os.fstat(home.descriptor)
    return status.st_dev, status.st_ino
