"""Listings: pages of a directory in the order of their cookies, so that no name comes twice or is passed over."""

import errno
import os
from dataclasses import dataclass, field

from cluster.errors import Refused
from cluster.messages import Entry, GetAttr, GetParent, ReadDir, Sync
from cluster.session import ManagerSession
from fusefs.attributes import Attributes
from fusefs.files import Files
from fusefs.paths import LastKnownPaths

PAGE_ENTRIES = 512
DOT_COOKIE = 1
DOTDOT_COOKIE = 2
GONE = frozenset({errno.ENOENT, errno.ESTALE})


@dataclass
class OpenDirectory:
    """One open directory; `page` holds what was fetched last, `end` says that nothing follows it."""

    ino: int
    page: list[Entry] = field(default_factory=list)
    end: bool = False


class Directories:
    """The operations of the overlay on open directories. All raise `GodwitError`."""

    def __init__(
        self, session: ManagerSession, files: Files, attributes: Attributes, paths: LastKnownPaths, timeout_s: float
    ) -> None:
        self._session = session
        self._files = files
        self._attributes = attributes
        self._paths = paths
        self._timeout_s = timeout_s
        self._open: dict[int, OpenDirectory] = {}

    async def opendir(self, ino: int) -> int:
        """A handle. The manager knows of it: a directory that is removed meanwhile lives until it is released."""
        number, _ = await self._files.open(ino, os.O_RDONLY)
        self._open[number] = OpenDirectory(ino)
        return number

    async def sync(self) -> None:
        """All changes of names so far are on the catalog's disk."""
        await self._session.call(Sync(), timeout_s=self._timeout_s)

    def releasedir(self, number: int) -> None:
        del self._open[number]
        self._files.release(number)

    async def page(self, number: int, after: int) -> list[Entry]:
        """Some entries with cookies greater than *after*, at least one unless the listing has ended there."""
        directory = self._open[number]
        if after < DOTDOT_COOKIE:
            directory.page, directory.end = [], False
            return await self._dots(directory.ino, after)
        fetched = directory.page
        if fetched and (fetched[0].cookie <= after < fetched[-1].cookie):
            return [entry for entry in fetched if entry.cookie > after]
        if fetched and after == fetched[-1].cookie and directory.end:
            return []
        await self._fetch(directory, after)
        return directory.page

    async def _fetch(self, directory: OpenDirectory, after: int) -> None:
        try:
            request = ReadDir(directory.ino, after, PAGE_ENTRIES)
            listing = await self._session.call(request, timeout_s=self._timeout_s)
        except Refused as error:
            if error.errno not in GONE:
                raise
            directory.page, directory.end = [], True
            return
        for entry in listing.entries:
            self._paths.saw(entry.node.ino, directory.ino, entry.name)
        directory.page, directory.end = listing.entries, listing.end

    async def _dots(self, ino: int, after: int) -> list[Entry]:
        try:
            return await self._dots_of_living(ino, after)
        except Refused as error:
            if error.errno not in GONE:
                raise
            return []

    async def _dots_of_living(self, ino: int, after: int) -> list[Entry]:
        entries = []
        if after < DOT_COOKIE:
            node = (await self._session.call(GetAttr(ino), timeout_s=self._timeout_s)).node
            entries.append(Entry(b".", DOT_COOKIE, node))
        parent = await self._session.call(GetParent(ino), timeout_s=self._timeout_s)
        node = (await self._session.call(GetAttr(parent.ino), timeout_s=self._timeout_s)).node
        entries.append(Entry(b"..", DOTDOT_COOKIE, node))
        return entries

    async def live(self, entry: Entry) -> Entry:
        """An entry with present attributes: the kernel takes them over, so stale ones could cut a mapped file short."""
        return Entry(entry.name, entry.cookie, await self._attributes.live(entry.node))
