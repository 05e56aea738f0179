"""Names for the files of a catalog that is made again: the paths that their objects know, below directories made on the way.

Only for `manager.catalog.rebuilding`: nobody works with the catalog meanwhile.
"""

import stat
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from cluster.messages import ROOT_INO
from cluster.messages.values import COOKIE_TERM_BITS
from cluster.volume.tree import LOST, numbered
from manager.catalog.schema import counters, dentries, inodes

_ENTRY = select(dentries.c.ino).where(dentries.c.parent == bindparam("parent"), dentries.c.name == bindparam("name"))
_INODE = select(inodes.c.mode, inodes.c.uid, inodes.c.gid).where(inodes.c.ino == bindparam("ino"))
_ADD_LINK = update(inodes).where(inodes.c.ino == bindparam("b_ino")).values(nlink=inodes.c.nlink + 1)
_MOVE = (
    update(dentries)
    .where(dentries.c.parent == bindparam("b_parent"), dentries.c.name == bindparam("b_name"))
    .values(parent=bindparam("to_parent"), name=bindparam("to_name"), cookie=bindparam("cookie"))
)
DIRECTORIES_REMEMBERED = 100_000


class _Directory(NamedTuple):
    ino: int
    mode: int
    uid: int
    gid: int


class Names:
    """Gives names in one transaction; *term*: the one that the catalog is in, of which no entry is yet."""

    def __init__(self, connection: Connection, term: int) -> None:
        self._connection = connection
        self._cookie = term << COOKIE_TERM_BITS
        self._directories: dict[tuple[str, ...], _Directory] = {}  # by path; bounded
        self.made = 0  # directories

    def add(self, ino: int, parts: list[str], mtime_ns: int) -> bool:
        """Gives an inode the name, or with its number behind it if somebody has that; whether one of the two could be given.

        Directories that are missing become as the one above is, and as old as the first file in them.
        """
        return bool(parts) and self._add_at(ino, parts, mtime_ns)

    def add_lost(self, ino: int, mtime_ns: int) -> None:
        """Gives it a name in `LOST`; a number behind the number, if somebody has taken that name."""
        for ending in ("", ".1", ".2", ".3"):
            if self._add_at(ino, [LOST, f"{ino}{ending}"], mtime_ns, mode=0o700):
                return
            if self._find_directory((LOST,)) is None:
                break  # a file has that name
        # Below the root: of a number only objects and this catalog's users have made names.
        self._add_at(ino, [f"{LOST}.{ino}"], mtime_ns)

    def rename(self, parent: int, name: bytes, parts: list[str]) -> bool:
        """Renames what has this name, if its new directory is there and nobody has the name."""
        directory = self._find_directory(tuple(parts[:-1]))
        new_name = as_bytes(parts[-1])
        if directory is None or (directory.ino, new_name) == (parent, name) or self._entry(directory.ino, new_name) is not None:
            return False
        place = {
            "b_parent": parent,
            "b_name": name,
            "to_parent": directory.ino,
            "to_name": new_name,
            "cookie": self._next_cookie(),
        }
        self._connection.execute(_MOVE, place)
        return True

    def _add_at(self, ino: int, parts: list[str], mtime_ns: int, mode: int = 0) -> bool:
        directory = self._open_directory(tuple(parts[:-1]), mtime_ns, mode)
        if directory is None:
            return False
        for name in (parts[-1], numbered(parts[-1], ino)):
            found = self._entry(directory.ino, as_bytes(name))
            if found is None:
                self._insert(directory.ino, as_bytes(name), ino)
                return True
            if found == ino:
                return True
        return False

    def _find_directory(self, parts: tuple[str, ...]) -> _Directory | None:
        """The directory of that path, if there is one."""
        here = self._directories.get(parts)
        if here is not None:
            return here
        if not parts:
            ino: int | None = ROOT_INO
        else:
            above = self._find_directory(parts[:-1])
            ino = None if above is None else self._entry(above.ino, as_bytes(parts[-1]))
        row = None if ino is None else self._connection.execute(_INODE, {"ino": ino}).one_or_none()
        if ino is None or row is None or not stat.S_ISDIR(row.mode):
            return None
        return self._remember(parts, _Directory(ino, row.mode, row.uid, row.gid))

    def _open_directory(self, parts: tuple[str, ...], mtime_ns: int, mode: int) -> _Directory | None:
        """The directory of that path, which is made if it is missing; None if something else is in the way."""
        found = self._find_directory(parts)
        if found is not None or not parts:
            return found
        above = self._open_directory(parts[:-1], mtime_ns, 0)
        if above is None or self._entry(above.ino, as_bytes(parts[-1])) is not None:
            return None
        return self._remember(parts, self._make(above, as_bytes(parts[-1]), mtime_ns, mode))

    def _make(self, above: _Directory, name: bytes, mtime_ns: int, mode: int) -> _Directory:
        ino: int = self._connection.execute(select(counters.c.value).where(counters.c.name == "next_ino")).scalar_one()
        self._connection.execute(update(counters).where(counters.c.name == "next_ino").values(value=ino + 1))
        made = _Directory(ino, stat.S_IFDIR | (mode or stat.S_IMODE(above.mode) & ~stat.S_ISVTX), above.uid, above.gid)
        times = {"atime_ns": mtime_ns, "mtime_ns": mtime_ns, "ctime_ns": mtime_ns, "btime_ns": mtime_ns}
        row = {"ino": ino, "mode": made.mode, "nlink": 2, "uid": made.uid, "gid": made.gid, "size": 4096, "blocks": 8, **times}
        self._connection.execute(insert(inodes), row)
        self._insert(above.ino, name, ino)
        self._connection.execute(_ADD_LINK, {"b_ino": above.ino})
        self.made += 1
        return made

    def _entry(self, parent: int, name: bytes) -> int | None:
        found: int | None = self._connection.execute(_ENTRY, {"parent": parent, "name": name}).scalar_one_or_none()
        return found

    def _insert(self, parent: int, name: bytes, ino: int) -> None:
        row = {"parent": parent, "name": name, "cookie": self._next_cookie(), "ino": ino}
        self._connection.execute(insert(dentries), row)

    def _next_cookie(self) -> int:
        self._cookie += 1
        return self._cookie

    def _remember(self, parts: tuple[str, ...], directory: _Directory) -> _Directory:
        if len(self._directories) >= DIRECTORIES_REMEMBERED:
            self._directories.clear()
        self._directories[parts] = directory
        return directory


def as_bytes(name: str) -> bytes:
    """The bytes of a name in a record, see `cluster.volume.layout.display_path`."""
    return name.encode("utf-8", "surrogateescape")
