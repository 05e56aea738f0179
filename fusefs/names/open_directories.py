"""Directories that are open here, some of them without the manager knowing it, and what giving way has to know of open inodes."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from cluster.messages import Node
from cluster.messages import OpenInode as Registration
from fusefs.caching.cache import NOTHING, Allowance, KeptListing, Listed
from fusefs.openfiles import OpenFiles

LISTED_MAX = 20_000  # entries of a listing that is kept
DOTDOT_COOKIE = 2  # the entries of a directory follow `.` and `..`


@dataclass(eq=False)
class OpenDirectory:
    """One open directory. `handle`: of the registration at the manager, 0 while there is none, until `quiet_until_s` at most.

    `entries`: what has been fetched, in the order of the cookies, all of it from the beginning if `from_start`; nothing follows
    them if `end`. `allowed` came with the first of them. `whole`: it is a listing that was kept, whose nodes may be out of date.
    `mark`: of the positions of this listing. `keeps_cache`: whether the kernel has something of the directory that is older than
    what this handle is told.
    """

    node: Node
    handle: int = 0
    quiet_until_s: float = 0.0
    parent: int = 0
    entries: list[Listed] = field(default_factory=list)
    allowed: Allowance = NOTHING
    from_start: bool = False
    end: bool = False
    whole: bool = False
    mark: int = 0
    keeps_cache: bool = False

    @property
    def ino(self) -> int:
        return self.node.ino

    def begin(self, mark: int) -> None:
        """Goes back to the beginning, of a listing that is yet to be fetched."""
        self.parent, self.entries, self.allowed, self.mark = 0, [], NOTHING, mark
        self.whole = self.end = self.from_start = False

    def begin_kept(self, kept: KeptListing) -> None:
        """Goes back to the beginning, of a listing that is kept."""
        self.parent, self.entries, self.allowed, self.mark = kept.parent, kept.entries, kept.allowed, kept.mark
        self.whole = self.end = True
        self.from_start = False

    def add(self, after: int, page: list[Listed], allowed: Allowance, end: bool) -> None:
        """Takes a page that was asked for *after* a cookie; a long listing is not kept as a whole."""
        first = after <= DOTDOT_COOKIE
        if first:
            self.from_start, self.allowed = True, allowed
        if first or not self.from_start or len(self.entries) >= LISTED_MAX:
            self.entries = page
            self.from_start = first
        else:
            self.entries = self.entries + page
        self.end = end

    def until_s(self) -> float:
        """Until when its names may be kept, 0 if not."""
        return self.allowed.until_s(self.ino)


class Opens:
    """What is open. A directory that is listed from what is kept here is opened *quietly*: under its lease, which the manager
    has to recall before the directory could go, so that it is told in time."""

    def __init__(self, open_files: OpenFiles, let_go: Callable[[Iterable[int]], Awaitable[None]]) -> None:
        """*let_go* ends registrations that only linger."""
        self._open_files = open_files
        self._let_go = let_go
        self._quiet: dict[int, list[OpenDirectory]] = {}

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
            self._open_files.release_handle(handle)
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

    # ------------------------------------------------------------------------------------------------ giving way

    def is_open(self, ino: int) -> bool:
        return ino in self._quiet or self._open_files.is_open(ino)

    def stale(self, ino: int) -> None:
        """What is known of the inode is to be asked anew before its content is read."""
        self._open_files.stale(ino)

    def tell(self, inodes: Iterable[int]) -> tuple[list[int], int]:
        """Those of *inodes* that are quietly open; from now on they count as registered, by the sequence that is returned."""
        told = [ino for ino in inodes if ino in self._quiet]
        if not told:
            return [], 0
        sequence = self._open_files.next_sequence()
        for ino in told:
            for directory in self._quiet.pop(ino):
                directory.handle = self._open_files.open_registered(directory.node)
        return told, sequence

    async def let_go(self, inodes: Iterable[int]) -> None:
        """Tells the manager which of *inodes* it believes to be open are not any more. Raises `GodwitError`."""
        await self._let_go(inodes)

    def registrations(self) -> list[Registration]:
        """All that a manager must be told, which counts as registered from now on."""
        self.tell(list(self._quiet))
        return self._open_files.registrations()
