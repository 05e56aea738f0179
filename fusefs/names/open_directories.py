"""Directories that are open here, also those that the manager does not know of, and what recalls need to know of open inodes."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from cluster.messages import Node
from cluster.messages import OpenInode as Registration
from fusefs.caching.grants import NOTHING, Permit
from fusefs.caching.listings import KeptListing, Listed
from fusefs.content.open_files import OpenFiles

DOTDOT_COOKIE = 2  # the entries of a directory follow `.` and `..`


@dataclass(eq=False)
class OpenDirectory:
    """One open directory, and the listing that its reader is going through."""

    node: Node
    handle: int = 0  # of the registration at the manager; 0 while there is none
    quiet_until_s: float = 0.0  # when it is registered at the latest
    parent: int = 0  # what `..` is; 0 while that is not known
    entries: list[Listed] = field(default_factory=list)  # what has been fetched, in the order of the cookies
    permit: Permit = NOTHING  # of the first page: whether the names may be kept
    begins_after: int = 0  # the cookie behind which `entries` begins
    from_start: bool = False  # `entries` begins with the first one
    end: bool = False  # nothing follows `entries`
    whole: bool = False  # it is a listing that was kept, whose nodes may be out of date
    mark: int = 0  # of the positions that the kernel is told (`fusefs.kernel.listings`)
    bound: int = 0  # the cookie up to which the listing goes, so that what is renamed meanwhile does not come twice; 0: not known
    keeps_cache: bool = False  # the kernel may have a listing of it that is older than what this handle is told

    @property
    def ino(self) -> int:
        return self.node.ino

    def given_to_kernel(self, *, keeps_cache: bool) -> None:
        """The kernel is told of it, in this step, and whether it may keep what it has cached of the directory."""
        self.keeps_cache = keeps_cache

    def kernel_has_older(self) -> bool:
        """Whether the kernel may have an older listing cached than the one that begins now; from now on it has this one, too."""
        had, self.keeps_cache = self.keeps_cache, True
        return had

    def found_parent(self, parent: int) -> None:
        self.parent = parent

    def begin(self, mark: int) -> None:
        """Goes back to the beginning, of a listing that is yet to be fetched."""
        self.parent, self.entries, self.permit, self.mark = 0, [], NOTHING, mark
        self.whole = self.end = self.from_start = False
        self.bound = self.begins_after = 0

    def begin_kept(self, kept: KeptListing) -> None:
        """Goes back to the beginning, of a listing that is kept."""
        self.parent, self.entries, self.permit, self.mark = kept.parent, kept.entries, kept.permit, kept.mark
        self.whole = self.end = True
        self.begins_after = 0
        self.from_start = False

    def add(self, after: int, page: list[Listed], permit: Permit, *, newest: int, end: bool, listed_max: int) -> None:
        """Takes a page that was asked for *after* a cookie, the *newest* one being what it was when the listing began.

        A listing with more entries than *listed_max* is not kept as a whole.
        """
        self.bound = self.bound or newest
        first = after <= DOTDOT_COOKIE
        if first:
            self.from_start, self.permit = True, permit
        if first or not self.from_start or len(self.entries) >= listed_max:
            self.entries, self.begins_after = page, after
            self.from_start = first
        else:
            self.entries = self.entries + page
        self.end = end

    def until_s(self) -> float:
        """Until when its names may be kept, 0 if not."""
        return self.permit.until_s(self.ino)


class Opens:
    """What is open. A directory whose listing is kept here is opened *quietly*, under its lease: the manager has to recall that
    before the directory could go, and the answer names the directories that are open."""

    def __init__(self, open_files: OpenFiles, let_go: Callable[[Iterable[int]], Awaitable[None]]) -> None:
        """*let_go* ends registrations that only linger."""
        self._open_files = open_files
        self._let_go = let_go
        self._quiet: dict[int, list[OpenDirectory]] = {}  # by inode: those that the manager does not know to be open

    def open_quietly(self, node: Node, until_s: float) -> OpenDirectory:
        directory = OpenDirectory(node, quiet_until_s=until_s)
        self._quiet.setdefault(node.ino, []).append(directory)
        return directory

    def opened(self, handle: int) -> OpenDirectory:
        """A directory that was opened as the manager knows."""
        return OpenDirectory(self._open_files.handle(handle).inode.node, handle)

    def close(self, directory: OpenDirectory) -> None:
        """Ends a directory, however it was opened."""
        if directory.handle:
            self._open_files.release_handle(directory.handle)
        else:
            self._leave(directory)

    def registered(self, directory: OpenDirectory, handle: int) -> None:
        """The manager knows of it now, by *handle*; unless it was closed or registered meanwhile."""
        if directory.handle or directory not in self._quiet.get(directory.ino, ()):
            self._open_files.release_handle(handle)  # nobody else would: the directory has another by now, or is closed
            return
        self._leave(directory)
        directory.handle = handle

    def _leave(self, directory: OpenDirectory) -> None:
        quiet = self._quiet[directory.ino]
        quiet.remove(directory)
        if not quiet:
            del self._quiet[directory.ino]

    def quiet(self, ino: int = 0) -> list[OpenDirectory]:
        """The directories that the manager does not know to be open: of one inode, or all."""
        inodes = list(self._quiet) if ino == 0 else [ino]
        return [directory for one in inodes for directory in self._quiet.get(one, ())]

    # ------------------------------------------------------------------------------------------------ recalls

    def is_open(self, ino: int) -> bool:
        return ino in self._quiet or self._open_files.is_open(ino)

    def stale(self, ino: int) -> None:
        """What is known of the inode is to be asked anew before its content is read."""
        self._open_files.stale(ino)

    def present(self, inodes: Iterable[int]) -> tuple[list[int], int]:
        """Those of *inodes* that are quietly open; from now on they count as registered, by the sequence that is returned."""
        presented = [ino for ino in inodes if ino in self._quiet]
        if not presented:
            return [], 0
        sequence = self._open_files.next_sequence()
        for ino in presented:
            for directory in self._quiet.pop(ino):
                directory.handle = self._open_files.open_registered(directory.node)
        return presented, sequence

    async def let_go(self, inodes: Iterable[int]) -> None:
        """Tells the manager which of *inodes* it believes to be open are not any more. Raises `GodwitError`."""
        await self._let_go(inodes)

    def registrations(self) -> list[Registration]:
        """All registrations, to be presented to a manager. Quiet directories count as registered from now on."""
        self.present(list(self._quiet))
        return self._open_files.registrations()
