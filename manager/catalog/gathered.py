"""Changes that a transaction is going to make, gathered so that many are written by one statement: either names with inodes that
are added, or names that are removed.

Inodes come first and whatever refers to them after; directories that get or lose names are read and written once. What is
gathered is not in the database yet: who asks that for more than `row` and `entry` must have it written first.
"""

import errno
from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, delete
from sqlalchemy.exc import IntegrityError

from cluster.errors import refused
from manager.catalog.hot import Hot
from manager.catalog.inodes import NODE_COLUMNS, RELINK, InodeRow, find_inodes, touch_directory
from manager.catalog.schema import dentries

_make_class: Callable[..., Any] = namedtuple
_Inode = _make_class("_Inode", [column.name for column in NODE_COLUMNS])

_REMOVE_ENTRIES = Hot(
    delete(dentries).where(
        dentries.c.parent == bindparam("b_parent"), dentries.c.name == bindparam("b_name"), dentries.c.ino == bindparam("b_ino")
    )
)


class Gathered:
    """What one transaction has gathered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._directories: dict[int, InodeRow] = {}  # that were read, by number
        self._touched: dict[int, tuple[int, int]] = {}  # directories that got names: when last, and how many subdirectories
        self._rows: dict[Hot, list[Mapping[str, Any]]] = {}  # of all tables but `inodes`, by the statement that adds them
        self._add_inode: Hot | None = None
        self._expected: dict[tuple[int, bytes], int] = {}  # names that are taken to be those of these inodes, until `write`
        self._losing: dict[int, InodeRow] = {}  # these inodes, with the links that they have left
        self._removed: list[dict[str, Any]] = []  # entries
        self._relinked: list[dict[str, Any]] = []  # inodes that lose names
        self.inodes: dict[int, InodeRow] = {}  # that are going to be added
        self.added: list[InodeRow] = []  # by the last `write`
        self.parents: dict[int, int] = {}  # of these, the directory in which each was made

    def row(self, ino: int) -> InodeRow | None:
        """An inode that is going to be added, or a directory that was read and has changed no more than its times and links."""
        return self.inodes.get(ino) or self._directories.get(ino)

    def read(self, directory: InodeRow) -> None:
        """A directory was read from the database."""
        self._directories[directory.ino] = directory

    # ------------------------------------------------------------------------------------------------------ removing

    @property
    def is_removing(self) -> bool:
        return bool(self._expected or self._removed)

    def expect(self, names: Mapping[tuple[int, bytes], int]) -> None:
        """Begins to gather removals of these names, which the caller has reason to take for those of these inodes."""
        self._expected = dict(names)
        self._losing = find_inodes(self._connection, set(names.values()))

    def entry(self, parent: int, name: bytes) -> InodeRow | None:
        """The inode that is expected to have this name; `write` finds out."""
        return self._losing.get(self._expected.get((parent, name), 0))

    def remove(self, parent: int, name: bytes) -> None:
        """Removes a name that `entry` knows."""
        ino = self._expected.pop((parent, name))
        self._removed.append({"b_parent": parent, "b_name": name, "b_ino": ino})

    def relink(self, ino: int, now_ns: int, links: int) -> None:
        """As `manager.catalog.inodes.relink`."""
        row = self._losing[ino]
        self._losing[ino] = row._replace(nlink=row.nlink + links)
        self._relinked.append({"b_ino": ino, "now": now_ns, "links": links})

    # -------------------------------------------------------------------------------------------------------- adding

    def add_inode(self, statement: Hot, row: Mapping[str, Any], parent: int) -> None:
        """Adds an inode with a name in *parent*."""
        if row["ino"] in self.inodes:
            raise refused(errno.EEXIST, f"inode {row['ino']}")
        self._add_inode = statement
        self.inodes[row["ino"]] = _Inode(**row)
        self.parents[row["ino"]] = parent

    def add(self, statement: Hot, row: Mapping[str, Any]) -> None:
        """Adds a row of another table."""
        self._rows.setdefault(statement, []).append(row)

    def change(self, ino: int, values: Mapping[str, int]) -> InodeRow:
        """Other values for an inode that is going to be added; its row."""
        changed = self.inodes[ino] = self._with_touch(ino)._replace(**values)
        return changed

    def touch(self, directory: int, now_ns: int, links: int) -> None:
        """A directory gets or loses a name, as by `touch_directory`."""
        _before_ns, sum_of_links = self._touched.get(directory, (0, 0))
        self._touched[directory] = (now_ns, sum_of_links + links)

    def _with_touch(self, ino: int) -> InodeRow:
        row = self.inodes[ino]
        touch = self._touched.pop(ino, None)
        if touch is None:
            return row
        return row._replace(mtime_ns=touch[0], ctime_ns=touch[0], nlink=row.nlink + touch[1])

    def write(self) -> None:
        """Writes all of it. EEXIST if anything is there already, ESTALE if a name is another inode's: then it must be undone."""
        if _REMOVE_ENTRIES.run_many(self._connection, self._removed) != len(self._removed):
            raise refused(errno.ESTALE, "a name means something else")
        RELINK.run_many(self._connection, self._relinked)
        added = self.added = [self._with_touch(ino) for ino in self.inodes]
        try:
            if self._add_inode is not None:
                self._add_inode.run_many(self._connection, [row._asdict() for row in added])
            for statement, rows in self._rows.items():
                statement.run_many(self._connection, rows)
        except IntegrityError as error:
            raise refused(errno.EEXIST, "a name or number of what is made") from error
        for directory, (now_ns, links) in self._touched.items():
            touch_directory(self._connection, directory, now_ns, links=links)
        for gathered in (self._directories, self._touched, self._rows, self._expected, self._losing):
            gathered.clear()
        self._removed.clear()
        self._relinked.clear()
        self.inodes = {}


def add_row(connection: Connection, gathered: Gathered | None, statement: Hot, row: Mapping[str, Any]) -> None:
    """Adds a row of a table other than `inodes`, now or with what is gathered."""
    if gathered is None:
        statement.run(connection, row)
    else:
        gathered.add(statement, row)
