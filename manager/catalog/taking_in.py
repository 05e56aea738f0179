"""Takes into a catalog what volumes' objects say that it does not know, or knows otherwise; see `manager.catalog.rebuilding`.

Objects are looked at in the order of their numbers, a directory of them at a time on all volumes together, so that what is in
memory does not grow with the number of files. What gets a name is kept until all that is gone has given its name up.
"""

import stat
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cluster.volume.layout import OBJECTS_PER_DIRECTORY, ObjectRecord, VolumeLayout
from cluster.volume.records import FoundObject, objects_in
from cluster.volume.tree import path_parts
from manager.catalog.inodes import UNNAMED, UNSETTLED, path_of
from manager.catalog.new_names import Names
from manager.catalog.schema import abandoned, counters, dentries, inodes, orphans, replicas, tasks
from manager.rules.rebuilding import Change, Decision, Held, Known, decide

PLACED_TOGETHER = 100_000  # names that are kept until the end; of more some are given before
EXAMPLES = 20  # of files of which something is to be told, of each kind
UNKNOWN_MODE = 0o600  # of a file whose record does not say it


class Found(StrEnum):
    """What became of a file, or of an object."""

    KNOWN = "known"  # files that are as the backup says
    NEWER = "newer"  # that were committed after it
    MADE = "made"  # that it does not know
    LOST = "lost"  # of these, with no path
    RENAMED = "renamed"
    MOVED = "moved"  # their home is on another volume than the backup says
    OLDER = "older"  # their newest content is nowhere
    GONE = "gone"  # nothing of them is anywhere: they were removed after the backup, or are lost
    REMOVED = "removed"  # objects of files that had been removed before the backup
    LEFT_OUT = "left-out"  # objects that are no replicas of their files, which agents set aside
    BLANK = "blank"  # empty objects without a record
    UNREADABLE = "unreadable"  # objects


class Place(NamedTuple):
    """A volume that is looked at, with its number in the catalog."""

    number: int
    layout: VolumeLayout


class _New(NamedTuple):
    """A file that is to get a name; *renamed*: it has the one of the backup."""

    ino: int
    parts: list[str]
    mtime_ns: int
    renamed: bool


class _Rows(NamedTuple):
    """What the catalog has of the files of one directory of objects."""

    files: dict[int, Any]
    replicas: dict[int, dict[int, int]]  # versions by volume
    abandoned: frozenset[tuple[int, int]]


_range = inodes.c.ino.between(bindparam("first"), bindparam("last"))
_FILES = select(inodes).where(_range, inodes.c.home_volume != 0)
_REPLICAS = select(replicas.c.ino, replicas.c.volume, replicas.c.version).where(
    replicas.c.ino.between(bindparam("first"), bindparam("last"))
)
_ABANDONED = select(abandoned.c.ino, abandoned.c.volume).where(abandoned.c.ino.between(bindparam("first"), bindparam("last")))
_NAMES = select(dentries.c.parent, dentries.c.name).where(dentries.c.ino == bindparam("ino")).limit(2)
_UPDATE = (
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"))
    .values({name: bindparam(f"new_{name}") for name in ("home_volume", "home_epoch", "version", "object_ctime_ns")})
    .values(dirty=1)
)
_CONTENT = (
    update(inodes)
    .where(inodes.c.ino == bindparam("b_ino"))
    .values({name: bindparam(f"new_{name}") for name in ("mode", "uid", "gid", "size", "blocks", "mtime_ns", "ctime_ns")})
)
_CLEAN = update(inodes).where(inodes.c.ino == bindparam("b_ino")).values(dirty=0)
_OF_REPLICA = (replicas.c.ino == bindparam("b_ino")) & (replicas.c.volume == bindparam("b_volume"))


class TakingIn:
    """One transaction's work. *complete*: the catalog knows no other volumes than *places*."""

    def __init__(self, connection: Connection, places: Sequence[Place], term: int, *, complete: bool) -> None:
        self._connection = connection
        self._places = places
        self._given = frozenset(place.number for place in places)
        self._complete = complete
        self._names = Names(connection, term)
        self._waiting: list[_New] = []  # for names
        self._clean: list[dict[str, int]] = []  # files of this directory of objects that are as they were committed
        self.counts: Counter[Found] = Counter()
        self.examples: dict[Found, list[str]] = defaultdict(list)  # paths, or objects' places; at most `EXAMPLES` of each

    @property
    def directories(self) -> int:
        """How many were made, for files whose directories nobody knows."""
        return self._names.made

    def take(self, folder: int) -> None:
        """Takes in what the objects of one directory of objects say, on all volumes. Raises `OSError`."""
        found: dict[int, list[tuple[int, FoundObject]]] = defaultdict(list)
        for place in self._places:
            for one in objects_in(place.layout, folder):
                found[one.ino].append((place.number, one))
        rows = self._rows(folder)
        for ino in sorted(found.keys() | rows.files.keys()):
            self._take_file(ino, found.get(ino, []), rows)
        if self._clean:
            self._connection.execute(_CLEAN, self._clean)
            self._clean.clear()
        if len(self._waiting) >= PLACED_TOGETHER:
            self.give_names()

    def give_names(self) -> None:
        """Gives names to all that are to get one: those that have none first, since they make directories for the others."""
        for new in sorted(self._waiting, key=lambda new: new.renamed):
            if new.renamed:
                self._rename(new)
            elif not self._names.add(new.ino, new.parts, new.mtime_ns):
                self._names.add_lost(new.ino, new.mtime_ns)
                self._tell(Found.LOST, f"inode {new.ino}")
        self._waiting.clear()

    def _rename(self, new: _New) -> None:
        named = self._connection.execute(_NAMES, {"ino": new.ino}).all()
        # Of several names nobody knows which one it was.
        if len(named) == 1 and self._names.rename(named[0].parent, named[0].name, new.parts):
            self._tell(Found.RENAMED, "/" + "/".join(new.parts))

    def _rows(self, folder: int) -> _Rows:
        between = {"first": folder * OBJECTS_PER_DIRECTORY, "last": (folder + 1) * OBJECTS_PER_DIRECTORY - 1}
        versions: dict[int, dict[int, int]] = defaultdict(dict)
        for row in self._connection.execute(_REPLICAS, between):
            versions[row.ino][row.volume] = row.version
        files = {row.ino: row for row in self._connection.execute(_FILES, between)}
        return _Rows(files, versions, frozenset((row.ino, row.volume) for row in self._connection.execute(_ABANDONED, between)))

    def _take_file(self, ino: int, found: list[tuple[int, FoundObject]], rows: _Rows) -> None:
        row, versions = rows.files.get(ino), rows.replicas.get(ino, {})
        if row is None and versions:
            # Its rows outlive it until its objects are deleted.
            self.counts[Found.REMOVED] += len(found)
            return
        objects: dict[int, FoundObject] = {}
        for volume, one in found:
            if one.error:
                self._tell(Found.UNREADABLE, f"inode {ino} on volume {volume}: {one.error}")
            elif one.is_blank and row is None:
                self.counts[Found.BLANK] += 1
            elif (ino, volume) not in rows.abandoned:
                objects[volume] = one
        if len(objects) < len(found) and any(one.error for _volume, one in found):
            return  # it stays as it is: what cannot be looked at may be its newest content
        known = None if row is None else Known(row.home_volume, row.home_epoch, row.version)
        if not objects and (row is None or found):
            return
        decision = decide(known, [_held(volume, one) for volume, one in objects.items()], self._given, complete=self._complete)
        self._carry_out(ino, row, decision, objects)
        if decision.change is not Change.GONE:
            self.counts[Found.LEFT_OUT] += len(decision.left_out)
            kept = {volume: one for volume, one in objects.items() if volume not in decision.left_out}
            stays = row.home_volume if row is not None and decision.change is Change.NONE else 0
            self._set_replicas(ino, versions, kept, stays)

    def _carry_out(self, ino: int, row: Any, decision: Decision, objects: dict[int, FoundObject]) -> None:
        content = objects.get(decision.content)
        if decision.change is Change.GONE:
            self._tell(Found.GONE, self._path(ino))
            self._forget(ino)
        elif decision.change is Change.NONE or content is None:
            self.counts[Found.KNOWN] += 1
            if row is not None and _is_as_committed(row, objects.get(row.home_volume)):
                self._clean.append({"b_ino": row.ino})
        elif row is None:
            self._make(ino, decision, content)
        else:
            self._update(row, decision, content)
            if decision.change is Change.MOVED:
                self.counts[Found.MOVED] += 1
            else:
                self._tell(Found.OLDER if decision.change is Change.OLDER else Found.NEWER, self._path(ino))

    # ------------------------------------------------------------------------------------------------------------ files

    def _make(self, ino: int, decision: Decision, content: FoundObject) -> None:
        record = content.record or ObjectRecord(ino, 0, 0)
        mode = stat.S_IMODE(record.mode) if record.mode else UNKNOWN_MODE
        times = dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns", "btime_ns"), content.mtime_ns)
        row = {"ino": ino, "mode": stat.S_IFREG | mode, "nlink": 1, "uid": record.uid, "gid": record.gid, "dirty": 1, **times}
        of_content = {"size": content.size, "blocks": content.blocks, **_of_home(decision, content)}
        self._connection.execute(insert(inodes), row | of_content)
        self._waiting.append(_New(ino, path_parts(record.path), content.mtime_ns, renamed=False))
        self.counts[Found.MADE] += 1

    def _update(self, row: Any, decision: Decision, content: FoundObject) -> None:
        new = {f"new_{name}": value for name, value in _of_home(decision, content).items()}
        self._connection.execute(_UPDATE, {"b_ino": row.ino, **new})
        if decision.change is Change.MOVED:
            return
        record = content.record if content.record is not None and decision.change is Change.NEWER else None
        says = record is not None and record.mode != 0
        of_content = {
            "mode": stat.S_IFREG | stat.S_IMODE(record.mode) if record is not None and says else row.mode,
            "uid": record.uid if record is not None and says else row.uid,
            "gid": record.gid if record is not None and says else row.gid,
            "size": content.size,
            "blocks": content.blocks,
            "mtime_ns": content.mtime_ns,
            "ctime_ns": max(row.ctime_ns, min(content.mtime_ns, content.ctime_ns)),
        }
        self._connection.execute(_CONTENT, {"b_ino": row.ino, **{f"new_{name}": value for name, value in of_content.items()}})
        if record is not None and (parts := path_parts(record.path)):
            self._name_again(row, parts, content.mtime_ns)

    def _name_again(self, row: Any, parts: list[str], mtime_ns: int) -> None:
        if row.nlink == 0 and row.marks & UNNAMED:
            # It had no name yet; by now its object knows one.
            self._connection.execute(delete(orphans).where(orphans.c.ino == row.ino))
            named = {"nlink": 1, "marks": row.marks & ~UNNAMED}
            self._connection.execute(update(inodes).where(inodes.c.ino == row.ino).values(**named))
            self._waiting.append(_New(row.ino, parts, mtime_ns, renamed=False))
        elif row.nlink == 1:
            self._waiting.append(_New(row.ino, parts, mtime_ns, renamed=True))

    def _forget(self, ino: int) -> None:
        """Removes a file with its names. What else is of it goes with its row."""
        for table in (dentries, replicas, tasks):
            self._connection.execute(delete(table).where(table.c.ino == ino))
        self._connection.execute(delete(inodes).where(inodes.c.ino == ino))

    def _path(self, ino: int) -> str:
        return path_of(self._connection, ino).decode("utf-8", "backslashreplace") or f"inode {ino}"

    # --------------------------------------------------------------------------------------------------------- replicas

    def _set_replicas(self, ino: int, versions: dict[int, int], objects: dict[int, FoundObject], stays: int) -> None:
        """A row for each object, as it is, and none for what is not there. Of the home that *stays* the agents find out more."""
        gone = [volume for volume in versions if volume in self._given and volume not in objects and volume != stays]
        changed = {
            volume: one
            for volume, one in objects.items()
            if volume not in versions or (one.record is not None and one.record.version != versions[volume] and volume != stays)
        }
        replaced = [{"b_ino": ino, "b_volume": volume} for volume in (*gone, *(v for v in changed if v in versions))]
        if replaced:
            self._connection.execute(delete(replicas).where(_OF_REPLICA), replaced)
        if changed:
            self._connection.execute(insert(replicas), [_replica(ino, volume, one) for volume, one in changed.items()])

    def _tell(self, what: Found, example: str) -> None:
        self.counts[what] += 1
        if len(self.examples[what]) < EXAMPLES:
            self.examples[what].append(example)


def _is_as_committed(row: Any, one: FoundObject | None) -> bool:
    """Whether a home's object cannot have changed since its last commit. It needs no other, which would make copies stale."""
    return (
        one is not None
        and one.record is not None
        and not row.marks & UNSETTLED
        and (one.record.version, one.size, one.ctime_ns) == (row.version, row.size, row.object_ctime_ns)
    )


def _held(volume: int, one: FoundObject) -> Held:
    record = one.record or ObjectRecord(one.ino, 0, 0)
    return Held(volume, record.home_epoch, record.version, bool(record.checksum), as_recorded=one.is_as_recorded)


def _of_home(decision: Decision, content: FoundObject) -> dict[str, int]:
    # With the time of an object that was written after its record its agent would take that for committed.
    as_committed = content.is_as_recorded and decision.content == decision.home_volume
    return {
        "home_volume": decision.home_volume,
        "home_epoch": decision.home_epoch,
        "version": decision.version,
        "object_ctime_ns": content.ctime_ns if as_committed else 0,
    }


def _replica(ino: int, volume: int, one: FoundObject) -> dict[str, Any]:
    if one.record is None:
        return {"ino": ino, "volume": volume, "version": 0, "stamp_size": None, "stamp_mtime_ns": None, "stamp_ctime_ns": None}
    stamp = {"stamp_size": one.size, "stamp_mtime_ns": one.mtime_ns, "stamp_ctime_ns": one.ctime_ns}
    checksum = bytes.fromhex(one.record.checksum) if one.is_as_recorded else b""
    return {"ino": ino, "volume": volume, "version": one.record.version, "checksum": checksum, **stamp}


def folders_of_files(connection: Connection) -> Iterable[int]:
    """The directories of objects in which the catalog's files have theirs."""
    folder = (inodes.c.ino // OBJECTS_PER_DIRECTORY).label("folder")
    return [row.folder for row in connection.execute(select(folder).where(inodes.c.home_volume != 0).distinct())]


def count_inodes(connection: Connection, change: int) -> None:
    """So many inodes have come, or gone."""
    counted = counters.c.name == "inodes"
    connection.execute(update(counters).where(counted).values(value=counters.c.value + change))
