"""The notes in the catalog of which servers' mounts may be caching in which directories.

A new manager does not know who caches what until the mounts have presented themselves. With the notes it knows, for those that
have not, where they may be looking: only a change there has to wait. So a note is durable before the first grant for a
directory or what is in it. Everything that a mount caches is noted under the inode itself or, unless it is a directory, one of
the directories that have a name for it, which `Lease.directory` names; who takes such a name away is noted under the inode
itself, in the same transaction. (Were directories noted under their parents, nobody could make a file anywhere in a directory
while a server is missing that has been looking at its parent.)

Noted servers are kept in memory. They are changed in the event loop only, and may be asked from the store's thread.
"""

import stat
from collections import OrderedDict
from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, delete, select, update

from cluster.clock import monotonic_s
from manager.catalog.gathered import Gathered, add_row
from manager.catalog.hot import Hot, HotInsert
from manager.catalog.inodes import InodeRow, find_inode
from manager.catalog.schema import caching, dentries
from manager.catalog.store import Transaction
from manager.memory.leases import Lease
from manager.memory.members import Members
from manager.memory.sessions import Session

SWEEP_BATCH = 500

_FIND = Hot(select(caching.c.held).where(caching.c.server == bindparam("server"), caching.c.directory == bindparam("directory")))
_SET_HELD = Hot(
    update(caching)
    .where(caching.c.server == bindparam("b_server"), caching.c.directory == bindparam("b_directory"))
    .values(held=1)
)
_INSERT = HotInsert(caching, "directory", "server", "held")
_DELETE = Hot(delete(caching).where(caching.c.server == bindparam("b_server"), caching.c.directory == bindparam("b_directory")))
_PARENTS = Hot(select(dentries.c.parent).where(dentries.c.ino == bindparam("ino")))


class Notes:
    """What is noted, and when it was last made use of."""

    def __init__(self, connection: Connection, now: float) -> None:
        self._used: OrderedDict[tuple[str, int], float] = OrderedDict()  # in order of the times
        self._at: dict[int, dict[str, None]] = {}  # the same rows: by directory, the servers
        self._held: set[tuple[str, int]] = set()  # of these, directories in which the server's mount may be alone
        self.kept: set[tuple[str, int]] = set()  # rows that a transaction under way counts on
        for row in connection.execute(select(caching.c.server, caching.c.directory, caching.c.held)):
            self.noted(row.server, [row.directory], now, held=bool(row.held))

    def has(self, server: str, directory: int) -> bool:
        """Whether the server may be granted what is in the directory, and the directory."""
        return (server, directory) in self._used

    def holds(self, server: str, directory: int) -> bool:
        """Whether the server may be let alone with the directory and what is in it."""
        return (server, directory) in self._held

    def holding_at(self, directory: int) -> list[str]:
        """The servers whose mounts may be alone in a directory."""
        return [server for server in self.at(directory) if (server, directory) in self._held]

    @property
    def any_held(self) -> bool:
        """Whether any mount may be alone anywhere."""
        return bool(self._held)

    def servers(self) -> set[str]:
        """All that are noted anywhere."""
        return {server for server, _directory in self._used}

    def at(self, directory: int) -> list[str]:
        """The servers that are noted for a directory."""
        return list(self._at.get(directory, ()))

    def noted(self, server: str, directories: Iterable[int], now: float, *, held: bool = False) -> None:
        """These are in the catalog now."""
        for directory in directories:
            if held:
                self._held.add((server, directory))
            self._at.setdefault(directory, {})[server] = None
            self.used(server, directory, now)

    def used(self, server: str, directory: int, now: float) -> None:
        """Something was granted under the note."""
        key = (server, directory)
        self._used[key] = now
        self._used.move_to_end(key)

    def gone(self, directory: int) -> None:
        """The directory was removed, and its rows with it."""
        for server in self._at.pop(directory, ()):
            del self._used[server, directory]
            self._held.discard((server, directory))

    def take_unused(self, before: float, limit: int) -> list[tuple[str, int]]:
        """Forgets up to *limit* notes under which nothing was granted since *before*; their rows are to be deleted.

        Who is granted something there from now on is noted again, in a transaction behind the one that deletes.
        """
        taken: list[tuple[str, int]] = []
        while self._used and len(taken) < limit:
            key = server, directory = next(iter(self._used))
            if self._used[key] >= before:
                break
            del self._used[key]
            self._held.discard(key)
            del self._at[directory][server]
            if not self._at[directory]:
                del self._at[directory]
            taken.append(key)
        return taken


def write_notes(tx: Transaction, notes: Notes, server: str, directories: Iterable[int], *, held: bool = False) -> None:
    """Notes the server for these directories, as far as they exist; *held*: that its mount may be alone there."""
    written = [directory for directory in directories if find_inode(tx.connection, directory) is not None]
    for directory in written:
        row = {"server": server, "directory": directory}
        known = _FIND.one_or_none(tx.connection, row)
        if known is None:
            _INSERT.run(tx.connection, {**row, "held": int(held)})
        elif held and not known.held:
            _SET_HELD.run(tx.connection, {"b_server": server, "b_directory": directory})
    tx.after(lambda: notes.noted(server, written, monotonic_s(), held=held))


def note_new(
    tx: Transaction, notes: Notes, server: str, directory: int, gathered: Gathered | None = None, *, held: bool = False
) -> None:
    """Notes the server for a directory that is made in the same transaction."""
    add_row(tx.connection, gathered, _INSERT, {"server": server, "directory": directory, "held": int(held)})
    tx.after(lambda: notes.noted(server, [directory], monotonic_s(), held=held))


def delete_notes(tx: Transaction, notes: Notes, rows: list[tuple[str, int]]) -> None:
    """Deletes rows that have been taken out of the memory."""
    for server, directory in rows:
        # A rename whose effects have not run yet counts on the row.
        if (server, directory) not in notes.kept:
            _DELETE.run(tx.connection, {"b_server": server, "b_directory": directory})


def note_itself(tx: Transaction, notes: Notes, session: Session, lease: Lease | None, left: int) -> None:
    """The session takes a name of an inode that it caches out of the directory *left*: it is noted under itself from now on.

    (Others who cache it were called back.)
    """
    if lease is None or not lease.cached_until_s or lease.directory not in (left, 0):
        return
    # Kept first, before its row is looked for: the sweep may have taken the note out of the memory already.
    key = (session.server, lease.ino)
    notes.kept.add(key)
    write_notes(tx, notes, session.server, [lease.ino], held=bool(lease.alone_since_s))

    def moved() -> None:
        lease.directory = lease.ino
        notes.kept.discard(key)

    tx.after(moved)


def parents_of(connection: Connection, ino: int) -> list[int]:
    """All directories that have a name for the inode."""
    return [row.parent for row in _PARENTS.all(connection, {"ino": ino})]


def looking_at(
    connection: Connection, notes: Notes, members: Members, inodes: Iterable[int], absent: frozenset[str]
) -> frozenset[str]:
    """Which of the *absent* servers may be caching one of the inodes, as far as anybody can know.

    What has no name any more is in no directory. A dirty file may be cached at its home by who writes it.
    """
    looking: set[str] = set()
    for ino in inodes:
        row = find_inode(connection, ino)
        if row is None:
            continue
        if row.nlink == 0:
            return absent
        looking.update(notes.at(ino), _home_of_dirty(row, members))
        if stat.S_ISDIR(row.mode):
            continue
        for directory in parents_of(connection, ino):
            looking.update(notes.at(directory))
    return absent & looking


def holding(connection: Connection, notes: Notes, inodes: Iterable[int], absent: frozenset[str]) -> frozenset[str]:
    """Which mounts of the *absent* servers may be alone with one of the inodes, as far as anybody can know."""
    found: set[str] = set()
    for ino in inodes:
        found.update(notes.holding_at(ino))
        row = find_inode(connection, ino)
        if row is not None and not stat.S_ISDIR(row.mode):
            for directory in parents_of(connection, ino):
                found.update(notes.holding_at(directory))
    return absent & found


def _home_of_dirty(row: InodeRow, members: Members) -> list[str]:
    home = members.get(row.home_volume) if row.dirty else None
    return [] if home is None else [home.server]
