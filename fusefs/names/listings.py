"""Listings: pages of a directory in the order of their cookies, so that no name comes twice or is passed over.

A listing that was read from beginning to end under one lease is kept, and answers the next ones without the manager.
"""

import errno
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator

import trio

from cluster.errors import Refused
from cluster.messages import GetAttr, GetParent, Node, ReadDir
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching, EntryReply
from fusefs.caching.grants import NOTHING, Permit
from fusefs.caching.listings import KeptListing, Listed
from fusefs.content.attributes import Attributes
from fusefs.content.last_paths import LastKnownPaths
from fusefs.kernel.listings import Marks, cookie_of, position
from fusefs.names.open_directories import DOTDOT_COOKIE, OpenDirectory

PAGE_ENTRIES = 512  # asked of the manager at a time
ANSWER_ENTRIES = 256  # about what fits into one answer to the kernel
DOT_COOKIE = 1
GONE = frozenset({errno.ENOENT, errno.ESTALE})
LISTED_MAX = 20_000  # entries of a listing that is kept
GIVEN_MAX = 10_000  # directories; the kernel drops its listing of one that is forgotten here
THREADS = 4


class Listings:
    """Reads directories. All methods raise `GodwitError`.

    *drop_inode* has the kernel forget what it has cached of an inode; it may block.
    """

    def __init__(
        self,
        session: ManagerSession,
        caching: Caching,
        attributes: Attributes,
        paths: LastKnownPaths,
        drop_inode: Callable[[int], object],
        timeout_s: float,
        *,
        listed_max: int = LISTED_MAX,
    ) -> None:
        self._session = session
        self._caching = caching
        self._attributes = attributes
        self._paths = paths
        self._drop_inode = drop_inode
        self._timeout_s = timeout_s
        self._listed_max = listed_max
        self._given: OrderedDict[int, Permit] = OrderedDict()  # of the listing, with its nodes, that the kernel was told last
        self._marks = Marks()  # of the positions of each listing that is fetched
        self._threads = trio.CapacityLimiter(THREADS)

    def kernel_has_newest(self, ino: int) -> bool:
        """Whether the listing, with its nodes, that the kernel was told last is good at this moment."""
        given = self._given.get(ino, NOTHING)
        return given.until_s(ino) > trio.current_time()

    async def page(
        self, directory: OpenDirectory, start: int, opened: Collection[OpenDirectory]
    ) -> Iterator[tuple[bytes, int, EntryReply]]:
        """The entries behind the position *start*: their names, where they end, and what the kernel is told of each; empty when
        the listing has ended there.

        To be gone through, as far as the answer has room, and answered without an await. *opened*: all directories that are open,
        whose listings must not be joined with one that begins here.
        """
        after = cookie_of(start)
        found = await self._look(directory, after, opened)
        # No await from the end of `_present` to the answer: what may be kept is said as it is in this step.
        if found is not None:
            return self._tell(directory, after, *found)
        # Else this empty reply could make a listing whole in the kernel's cache that is not good any more.
        if not directory.mark or directory.until_s() <= trio.current_time():
            await self._drop_cache(directory.ino)
        return iter(())

    def _note_given(self, directory: OpenDirectory) -> None:
        """The kernel is told the listing from its beginning."""
        now, given = trio.current_time(), self._given
        given.pop(directory.ino, None)
        given[directory.ino] = directory.permit
        while given and (len(given) > GIVEN_MAX or next(iter(given.values())).deadline_s <= now):
            given.popitem(last=False)

    async def _look(
        self, directory: OpenDirectory, after: int, opened: Collection[OpenDirectory]
    ) -> tuple[list[Listed], list[tuple[Node, float]]] | None:
        """The entries behind the cookie *after*, with their present attributes and until when these may be kept; None if there
        are none, not even `.` and `..`, or the directory is gone."""
        try:
            if after < DOTDOT_COOKIE:
                await self._begin(directory, opened)
            entries = await self._following(directory, max(after, DOTDOT_COOKIE))
            present = await self._present(directory, entries)
        except Refused as error:
            if error.errno not in GONE:
                raise
            return None
        return (entries, present) if entries or after < DOTDOT_COOKIE else None

    def _tell(
        self, directory: OpenDirectory, after: int, entries: list[Listed], present: list[tuple[Node, float]]
    ) -> Iterator[tuple[bytes, int, EntryReply]]:
        if after < DOTDOT_COOKIE:
            self._note_given(directory)
        until_s, mark, parent, entry_reply = directory.until_s(), directory.mark, directory.ino, self._caching.entry_reply
        dots = [(b".", DOT_COOKIE, directory.ino), (b"..", DOTDOT_COOKIE, directory.parent)]
        for name, cookie, ino in dots:
            if cookie > after:
                yield name, position(cookie, mark), entry_reply(_directory(ino), 0.0, parent, name, until_s)
        for (cookie, name, _node, _permit), (node, attr_until_s) in zip(entries, present, strict=True):
            yield name, position(cookie, mark), entry_reply(node, attr_until_s, parent, name, until_s)

    async def _drop_cache(self, ino: int) -> None:
        await trio.to_thread.run_sync(self._drop_inode, ino, abandon_on_cancel=True, limiter=self._threads)

    async def _begin(self, directory: OpenDirectory, opened: Collection[OpenDirectory]) -> None:
        """From the beginning: from what is kept, if it is good at this moment, else by asking."""
        has_older = directory.kernel_has_older()
        kept = self._caching.listing(directory.ino)
        if kept is not None:
            directory.begin_kept(kept)  # with the mark that it had: the kernel may have its first pages already
            return
        if has_older:
            await self._drop_cache(directory.ino)
        directory.begin(self._marks.another({other.mark for other in opened if other.ino == directory.ino}))
        await self._fetch(directory, DOTDOT_COOKIE)
        # Asked under the lease for the listing, if there is one: who moves the directory now has to recall it.
        directory.found_parent((await self._session.call(GetParent(directory.ino), timeout_s=self._timeout_s)).ino)
        self._keep(directory)

    async def _following(self, directory: OpenDirectory, after: int) -> list[Listed]:
        entries = directory.entries
        # By cookie, not by count: names come and go while the directory is read.
        start = bisect_right(entries, after, key=_cookie)
        # What precedes the page that is held of a long listing is asked for again, if a program goes back (seekdir).
        if after < directory.begins_after or (start == len(entries) and not directory.end):
            await self._fetch(directory, after)
            self._keep(directory)
            entries = directory.entries
            start = bisect_right(entries, after, key=_cookie)
        return entries[start : start + ANSWER_ENTRIES]

    async def _fetch(self, directory: OpenDirectory, after: int) -> None:
        asked_s = trio.current_time()
        question = ReadDir(directory.ino, after, PAGE_ENTRIES, directory.bound)
        listing = await self._session.call(question, timeout_s=self._timeout_s)
        permit = self._caching.take(listing.grant, asked_s)
        for entry in listing.entries:
            self._paths.note(entry.node.ino, directory.ino, entry.name)
            self._caching.keep_node(entry.node, permit)
        page = [Listed(entry.cookie, entry.name, entry.node, permit) for entry in listing.entries]
        directory.add(after, page, permit, newest=listing.newest, end=listing.end, listed_max=self._listed_max)

    def _keep(self, directory: OpenDirectory) -> None:
        if directory.end and directory.from_start and directory.parent:
            kept = KeptListing(directory.entries, directory.parent, directory.permit, directory.mark)
            self._caching.keep_listing(directory.ino, kept)

    async def _present(self, directory: OpenDirectory, entries: list[Listed]) -> list[tuple[Node, float]]:
        """The present attributes of each, and until when they may be kept: the kernel takes them over, so stale ones could cut
        a mapped file short."""
        now = trio.current_time()
        # Same as what follows for entries that are all kept and clean, saves most of the time of a listing from the cache.
        known = self._caching.fresh(entries, now) if directory.whole else None
        if known is not None:
            return known
        found = []
        for listed in entries:
            kept = self._caching.node(listed.node.ino)
            if kept is None and directory.whole:
                kept = await self._describe(listed)
            node, permit = kept or (listed.node, listed.permit)
            if node.dirty and stat.S_ISREG(node.mode):
                node, current = await self._attributes.glance(node)
                permit = permit if current else NOTHING  # the kernel asks before it tells a program
            found.append((node, permit))
        # Asked at the end: homes were waited for in between, and what was recalled meanwhile may not be kept.
        return [(node, permit.until_s(node.ino)) for node, permit in found]

    async def _describe(self, listed: Listed) -> tuple[Node, Permit]:
        """An entry of a listing that is good, though what was known of the inode is not any more."""
        asked_s = trio.current_time()
        try:
            described = await self._session.call(GetAttr(listed.node.ino), timeout_s=self._timeout_s)
        except Refused as error:
            if error.errno not in GONE:
                raise
            return listed.node, NOTHING  # removed just now: it was there when the listing began
        permit = self._caching.take(described.grant, asked_s)
        self._caching.keep_node(described.node, permit)
        return described.node, permit


def _cookie(listed: Listed) -> int:
    return listed.cookie


def _directory(ino: int) -> Node:
    """What the kernel looks at of `.` and `..`: number and type."""
    return Node(ino, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
