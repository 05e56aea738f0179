"""Listings: pages of a directory in the order of their cookies, so that no name comes twice or is passed over.

A listing that was read from beginning to end under one lease is kept, and answers the next ones without the manager.
"""

import errno
import itertools
import os
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator

import trio

from cluster.errors import GodwitError, Refused
from cluster.messages import COOKIE_TERM_BITS, GetAttr, GetParent, Node, ReadDir, Sync
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import NOTHING, Allowance, Caching, KeptListing, Listed, Seen
from fusefs.content.attributes import Attributes
from fusefs.content.last_paths import LastKnownPaths
from fusefs.files import Files
from fusefs.kernel.listings import COOKIE_MAX, Marks, cookie_of, position
from fusefs.kernel.stream import OpenFlag
from fusefs.names.open_directories import DOTDOT_COOKIE, OpenDirectory, Opens

PAGE_ENTRIES = 512
ANSWER_ENTRIES = 256  # about what fits into one answer to the kernel
DOT_COOKIE = 1
GONE = frozenset({errno.ENOENT, errno.ESTALE})
QUIET_S = 2.0  # a directory that is open for longer is registered
TOLD_MAX = 10_000
TERM_MAX = COOKIE_MAX >> COOKIE_TERM_BITS  # of the managers whose cookies have room for a mark
THREADS = 4
REGISTER_S = 1.0  # before its lease would end


class Directories:
    """The operations of the overlay on open directories. All raise `GodwitError`.

    *drop_inode* has the kernel forget what it has cached of an inode; it may block.
    """

    def __init__(
        self,
        session: ManagerSession,
        files: Files,
        opens: Opens,
        caching: Caching,
        attributes: Attributes,
        paths: LastKnownPaths,
        drop_inode: Callable[[int], object],
        timeout_s: float,
    ) -> None:
        self._session = session
        self._files = files
        self._opens = opens
        self._caching = caching
        self._attributes = attributes
        self._paths = paths
        self._drop_inode = drop_inode
        self._timeout_s = timeout_s
        self._open: dict[int, OpenDirectory] = {}
        self._told: OrderedDict[int, Allowance] = OrderedDict()  # of the listing, with its nodes, that the kernel was told last
        self._marks = Marks()
        self._threads = trio.CapacityLimiter(THREADS)
        self._numbers = itertools.count(1)

    async def opendir(self, ino: int) -> int:
        """A handle. The manager knows of it or must recall its lease first: what is removed meanwhile lives until the release."""
        number = self.open_known(ino)
        if number is None:
            handle = await self._files.open(ino, os.O_RDONLY)
            number = self._number(self._opens.opened(handle))
        return number

    def open_known(self, ino: int) -> int | None:
        """As `opendir`, but only if the listing is kept: then nobody has to be asked."""
        directory = self._open_quietly(ino)
        return None if directory is None else self._number(directory)

    def _number(self, directory: OpenDirectory) -> int:
        number = next(self._numbers)
        self._open[number] = directory
        return number

    def flags(self, number: int) -> OpenFlag:
        """What the kernel is told with the handle: to keep the listing that it has cached only if that is good, and so is what it
        has of the entries; else it asks for them all again at once."""
        if self._session.term > TERM_MAX:
            return OpenFlag(0)
        directory = self._open[number]
        told = self._told.get(directory.ino, NOTHING)
        directory.keeps_cache = told.until_s(directory.ino) > trio.current_time()
        return OpenFlag.CACHE_DIR | (OpenFlag.KEEP_CACHE if directory.keeps_cache else OpenFlag(0))

    def _tells(self, directory: OpenDirectory) -> None:
        """The kernel is told the listing from its beginning."""
        now, told = trio.current_time(), self._told
        told.pop(directory.ino, None)
        told[directory.ino] = directory.allowed
        while told and (len(told) > TOLD_MAX or next(iter(told.values())).deadline_s <= now):
            told.popitem(last=False)

    def _open_quietly(self, ino: int) -> OpenDirectory | None:
        kept, listing = self._caching.node(ino), self._caching.listing(ino)
        now = trio.current_time()
        if kept is None or listing is None or listing.allowed.until_s(ino) <= now + REGISTER_S:
            return None
        return self._opens.open_quietly(kept[0], min(now + QUIET_S, listing.allowed.until_s(ino) - REGISTER_S))

    async def register(self, ino: int) -> None:
        """Has the manager know of all handles of a directory that is about to be removed by ourselves."""
        for directory in self._opens.quiet(ino) if ino else ():
            handle = await self._files.open(ino, os.O_RDONLY)
            self._opens.registered(directory, handle)

    async def register_loop(self) -> None:
        """Registers what stays open, long before its lease could end, until cancelled."""
        while True:
            await trio.sleep(REGISTER_S / 4)
            for directory in self._opens.quiet():
                if trio.current_time() >= directory.quiet_until_s:
                    try:
                        await self.register(directory.ino)
                    except GodwitError:
                        continue  # its lease ends by itself, and the next manager is told

    async def sync(self) -> None:
        """All changes of names so far are on the catalog's disk."""
        await self._session.call(Sync(), timeout_s=self._timeout_s)

    def releasedir(self, number: int) -> None:
        self._opens.close(self._open.pop(number))

    # ------------------------------------------------------------------------------------------------------ pages

    async def page(self, number: int, start: int) -> Iterator[tuple[bytes, int, Seen]]:
        """The entries behind the position *start*: their names, where they end, and what the kernel is told of each; empty when
        the listing has ended there.

        To be gone through, as far as the answer has room, and answered without an await.
        """
        directory, after = self._open[number], cookie_of(start)
        found = await self._look(directory, after)
        if found is not None:
            return self._tell(directory, after, *found)
        if not directory.mark or directory.until_s() <= trio.current_time():
            await self._drop_cache(directory.ino)
        return iter(())

    async def _look(self, directory: OpenDirectory, after: int) -> tuple[list[Listed], list[tuple[Node, float]]] | None:
        """The entries behind the cookie *after*, with their present attributes and until when these may be kept; None if there
        are none, not even `.` and `..`, or the directory is gone."""
        try:
            if after < DOTDOT_COOKIE:
                await self._begin(directory)
            entries = await self._following(directory, max(after, DOTDOT_COOKIE))
            present = await self._present(directory, entries)
        except Refused as error:
            if error.errno not in GONE:
                raise
            return None
        return (entries, present) if entries or after < DOTDOT_COOKIE else None

    def _tell(
        self, directory: OpenDirectory, after: int, entries: list[Listed], present: list[tuple[Node, float]]
    ) -> Iterator[tuple[bytes, int, Seen]]:
        if after < DOTDOT_COOKIE:
            self._tells(directory)
        until_s, mark, seen, parent = directory.until_s(), directory.mark, self._caching.seen, directory.ino
        dots = [(b".", DOT_COOKIE, directory.ino), (b"..", DOTDOT_COOKIE, directory.parent)]
        for name, cookie, ino in dots:
            if cookie > after:
                yield name, position(cookie, mark), seen(_directory(ino), 0.0, parent, name, until_s)
        for (cookie, name, _node, _allowed), (node, attr_until_s) in zip(entries, present, strict=True):
            yield name, position(cookie, mark), seen(node, attr_until_s, parent, name, until_s)

    async def _drop_cache(self, ino: int) -> None:
        await trio.to_thread.run_sync(self._drop_inode, ino, abandon_on_cancel=True, limiter=self._threads)

    async def _begin(self, directory: OpenDirectory) -> None:
        """From the beginning: from what is kept, if it is good at this moment, else by asking."""
        stale, directory.keeps_cache = directory.keeps_cache, True
        kept = self._caching.listing(directory.ino)
        if kept is not None:
            directory.begin_kept(kept)
            return
        if stale:
            await self._drop_cache(directory.ino)
        directory.begin(self._marks.another({other.mark for other in self._open.values() if other.ino == directory.ino}))
        await self._fetch(directory, DOTDOT_COOKIE)
        # Asked under the lease for the listing, if there is one: who moves the directory now has to recall it.
        directory.parent = (await self._session.call(GetParent(directory.ino), timeout_s=self._timeout_s)).ino
        self._keep(directory)

    async def _following(self, directory: OpenDirectory, after: int) -> list[Listed]:
        entries = directory.entries
        start = bisect_right(entries, after, key=_cookie)
        if start == len(entries) and not directory.end:
            await self._fetch(directory, after)
            self._keep(directory)
            entries = directory.entries
            start = bisect_right(entries, after, key=_cookie)
        return entries[start : start + ANSWER_ENTRIES]

    async def _fetch(self, directory: OpenDirectory, after: int) -> None:
        asked_s = trio.current_time()
        listing = await self._session.call(ReadDir(directory.ino, after, PAGE_ENTRIES), timeout_s=self._timeout_s)
        allowed = self._caching.take(listing.grant, asked_s)
        for entry in listing.entries:
            self._paths.saw(entry.node.ino, directory.ino, entry.name)
            self._caching.keep_node(entry.node, allowed)
        directory.add(
            after, [Listed(entry.cookie, entry.name, entry.node, allowed) for entry in listing.entries], allowed, listing.end
        )

    def _keep(self, directory: OpenDirectory) -> None:
        if directory.end and directory.from_start and directory.parent:
            kept = KeptListing(directory.entries, directory.parent, directory.allowed, directory.mark)
            self._caching.keep_listing(directory.ino, kept)

    async def _present(self, directory: OpenDirectory, entries: list[Listed]) -> list[tuple[Node, float]]:
        """The present attributes of each, and until when they may be kept: the kernel takes them over, so stale ones could cut
        a mapped file short."""
        now = trio.current_time()
        known = self._caching.fresh(entries, now) if directory.whole else None
        if known is not None:
            return known
        found = []
        for listed in entries:
            kept = self._caching.node(listed.node.ino)
            if kept is None and directory.whole:
                kept = await self._describe(listed)
            node, allowed = kept or (listed.node, listed.allowed)
            if node.dirty and stat.S_ISREG(node.mode):
                node = await self._attributes.live(node)
            found.append((node, allowed))
        return [(node, allowed.until_s(node.ino)) for node, allowed in found]

    async def _describe(self, listed: Listed) -> tuple[Node, Allowance]:
        """An entry of a listing that is good, though what was known of the inode is not any more."""
        asked_s = trio.current_time()
        try:
            described = await self._session.call(GetAttr(listed.node.ino), timeout_s=self._timeout_s)
        except Refused as error:
            if error.errno not in GONE:
                raise
            return listed.node, NOTHING  # removed just now: it was there when the listing began
        allowed = self._caching.take(described.grant, asked_s)
        self._caching.keep_node(described.node, allowed)
        return described.node, allowed


def _cookie(listed: Listed) -> int:
    return listed.cookie


def _directory(ino: int) -> Node:
    """What the kernel looks at of `.` and `..`: number and type."""
    return Node(ino, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
