"""Open directories: those that the manager knows of, and those that are open under their lease alone."""

import itertools
import os
from collections.abc import Iterator

import trio

from cluster.errors import GodwitError, Refused
from cluster.messages import COOKIE_TERM_BITS, Sync
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching, EntryReply
from fusefs.caching.held import HeldDirectories
from fusefs.content.opening import Opener
from fusefs.kernel.listings import COOKIE_MAX
from fusefs.kernel.stream import OpenFlag
from fusefs.names.listings import GONE, Listings
from fusefs.names.open_directories import OpenDirectory, Opens

QUIET_S = 2.0  # a directory that is open for longer is registered
TERM_MAX = COOKIE_MAX >> COOKIE_TERM_BITS  # of the managers whose cookies have room for a mark
REGISTER_S = 1.0  # before its lease would end


class Directories:
    """The operations of the overlay on open directories. All raise `GodwitError`.

    A directory that is open *quietly* is not registered: while there is a lease for its listing, the manager has to recall that
    before the directory could go.
    """

    def __init__(
        self,
        session: ManagerSession,
        held: HeldDirectories,
        opener: Opener,
        opens: Opens,
        caching: Caching,
        listings: Listings,
        timeout_s: float,
    ) -> None:
        self._session = session
        self._held = held
        self._opener = opener
        self._opens = opens
        self._caching = caching
        self._listings = listings
        self._timeout_s = timeout_s
        self._open: dict[int, OpenDirectory] = {}  # by the number that the kernel has
        self._numbers = itertools.count(1)  # other than those of `OpenFiles`: a quiet one has none there

    async def opendir(self, ino: int) -> int:
        """A handle. The manager knows of it or must recall its lease first: what is removed meanwhile lives until the release."""
        number = self.open_known(ino)
        if number is None:
            handle = await self._opener.open(ino, os.O_RDONLY)
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
        """The flags of the reply to an open: the kernel keeps the listing that it has cached only if the names and the attributes
        of all entries are good. Else it lists the directory again, which brings both."""
        if self._session.term > TERM_MAX:
            return OpenFlag(0)  # without marks, two listings could be joined into one in the kernel's cache
        directory = self._open[number]
        keeps_cache = self._listings.kernel_has_newest(directory.ino)
        directory.given_to_kernel(keeps_cache=keeps_cache)
        return OpenFlag.CACHE_DIR | (OpenFlag.KEEP_CACHE if keeps_cache else OpenFlag(0))

    def _open_quietly(self, ino: int) -> OpenDirectory | None:
        kept, listing = self._caching.node(ino), self._caching.listing(ino)
        now = trio.current_time()
        if kept is None or listing is None or listing.permit.until_s(ino) <= now + REGISTER_S:
            return None
        return self._opens.open_quietly(kept[0], min(now + QUIET_S, listing.permit.until_s(ino) - REGISTER_S))

    def is_open_quietly(self, ino: int) -> bool:
        """Whether the manager does not know of some handle of the directory."""
        return bool(ino and self._opens.quiet(ino))

    async def register(self, ino: int) -> None:
        """Has the manager know of all handles of a directory that is about to be removed by ourselves.

        If somebody else has removed it in the meantime, the change itself finds that, and what it means for the program.
        """
        for directory in self._opens.quiet(ino) if ino else ():  # 0: there is nothing of the name that is removed
            try:
                # Before the removal: the manager then knows that somebody has it open, and keeps it until the release.
                handle = await self._opener.open(ino, os.O_RDONLY)
            except Refused as error:
                if error.errno in GONE:
                    return
                raise
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

    async def sync(self, number: int) -> None:
        """All changes so far are on the catalog's disk. Raises `Refused` (EIO), once, if one of this directory was lost."""
        ino = self._open[number].ino
        await self._session.call(Sync(), timeout_s=self._timeout_s)
        # After it, as it goes behind the records: it may be now that they are lost.
        self._held.check(ino)

    def releasedir(self, number: int) -> None:
        self._opens.close(self._open.pop(number))

    async def page(self, number: int, start: int) -> Iterator[tuple[bytes, int, EntryReply]]:
        """The entries behind the position *start*: see `Listings.page`."""
        return await self._listings.page(self._open[number], start, self._open.values())
