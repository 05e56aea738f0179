"""All names of a directory at once, with their attributes, when several of them are looked up that are not known here.

Who walks a tree, or compares one with an index, looks every file up. One question for all of them costs the manager a tenth of
what one for each does.
"""

import trio

from cluster.messages import ReadDir
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching
from fusefs.caching.grants import NOTHING
from fusefs.caching.listings import Contents
from fusefs.caching.noted import Repeats
from fusefs.content.last_paths import LastKnownPaths
from fusefs.names.open_directories import DOTDOT_COOKIE

AGAIN_S = 1.0  # two unknown names in a directory within that time: more are to be expected
PAGE_ENTRIES = 512
NAMES_MAX = 2048  # of a directory that is read as a whole
ENTRIES_PER_S = 200  # of one directory, on average, however often others change it: that is 0.3 % of the manager's time
TOO_LARGE_S = 60.0  # until a directory with more names is tried again


class WholeDirectories:
    """Which directories are read as a whole, and when."""

    def __init__(self, session: ManagerSession, caching: Caching, paths: LastKnownPaths, timeout_s: float) -> None:
        self._session = session
        self._caching = caching
        self._paths = paths
        self._timeout_s = timeout_s
        self._misses = Repeats(AGAIN_S)  # directories in which names were not known

    async def missed(self, directory: int) -> bool:
        """A name there is not known here, or what it stands for is not: whether all of them may be known now. Raises
        `GodwitError`."""
        now = trio.current_time()
        if not self._misses.again(directory, now):
            return False
        # Before the first await: who looks up another name meanwhile asks for that one alone.
        self._misses.wait(directory, now + TOO_LARGE_S)
        return await self._read(directory)

    async def _read(self, directory: int) -> bool:
        names: dict[bytes, int | None] = {}
        after, permit, end = DOTDOT_COOKIE, NOTHING, False
        while not end and len(names) < NAMES_MAX:
            asked_s = trio.current_time()
            page = await self._session.call(ReadDir(directory, after, PAGE_ENTRIES), timeout_s=self._timeout_s)
            taken = self._caching.take(page.grant, asked_s)
            if after == DOTDOT_COOKIE:
                permit = taken  # of the first page: what is recalled later makes it void
            for entry in page.entries:
                names[entry.name] = entry.node.ino
                self._paths.note(entry.node.ino, directory, entry.name)
                self._caching.keep_node(entry.node, taken)
            end, after = page.end, page.entries[-1].cookie if page.entries else after
        if not end or not permit.until_s(directory):
            return False
        self._misses.wait(directory, trio.current_time() + max(AGAIN_S, len(names) / ENTRIES_PER_S))
        self._caching.keep_contents(directory, Contents(None, names, permit))
        return True
