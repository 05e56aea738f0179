"""What lies in a directory that is to be imported: walked without following a link, and looked at before anything is changed."""

import fcntl
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.errors import Refused
from cluster.mounted import MOUNTINFO, parse_mountinfo

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Place = tuple[bytes, ...]
"""The names from the directory that is imported to one in it."""


class Found(NamedTuple):
    """One name."""

    name: bytes
    status: os.stat_result


class Skipped(NamedTuple):
    """A name that is left where it is, and why."""

    place: Place
    why: str


class File(NamedTuple):
    """What tells a file with several names."""

    device: int
    ino: int

    @classmethod
    def of(cls, status: os.stat_result) -> "File":
        return cls(status.st_dev, status.st_ino)


class Folder:
    """The directory that is imported, open, and locked against a second import."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.descriptor = os.open(self.path, _FOLDER)
        try:
            # What another one is about to take over would look like what an interrupted one has left.
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self.descriptor)
            raise Refused(f"{path} is being imported already, or something else has locked it") from error
        except OSError:
            pass  # a file system of another machine, without locks
        self._device = os.fstat(self.descriptor).st_dev
        top = os.fsencode(self.path)
        mounts = [os.fsencode(mounted.path) for mounted in parse_mountinfo(MOUNTINFO.read_bytes())]
        # Names relative to it: bind mounts of one file system have its device number.
        self._mounts = {mount[len(top) :].strip(b"/") for mount in mounts if mount.startswith(top.rstrip(b"/") + b"/")}

    def close(self) -> None:
        os.close(self.descriptor)

    @contextmanager
    def opened(self, place: Place) -> Iterator[int]:
        """A descriptor of a directory in it; whatever somebody puts in its way meanwhile, no link is followed."""
        descriptor = self.open(place)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open(self, place: Place) -> int:
        """As `opened`, for whoever closes it. Raises `OSError`."""
        here = os.dup(self.descriptor)
        for name in place:
            try:
                below = os.open(name, _FOLDER, dir_fd=here)
            finally:
                os.close(here)
            here = below
        return here

    def is_elsewhere(self, place: Place, status: os.stat_result) -> bool:
        """Whether something else is mounted there."""
        return status.st_dev != self._device or b"/".join(place) in self._mounts

    def shown(self, place: Place) -> str:
        """The whole path."""
        return os.path.join(self.path, os.fsdecode(b"/".join(place)))


def names_in(descriptor: int) -> Iterator[Found]:
    """The names in an open directory, in the order of their inodes: so they lie on the disk. Raises `OSError`."""
    with os.scandir(descriptor) as entries:
        names = sorted((entry.inode(), os.fsencode(entry.name)) for entry in entries)
    for _ino, name in names:
        try:
            yield Found(name, os.stat(name, dir_fd=descriptor, follow_symlinks=False))
        except FileNotFoundError:
            continue


@dataclass
class Survey:
    """What there is to import."""

    files: int = 0  # names of regular files
    size: int = 0  # bytes of them, each file once
    directories: int = 0
    others: int = 0  # symbolic links, FIFOs and devices
    links: Counter[File] = field(default_factory=Counter)  # names of files that have several
    skipped: list[Skipped] = field(default_factory=list)
    unreadable: list[Skipped] = field(default_factory=list)  # directories


class Walk:
    """Which names are imported, and which are skipped."""

    def __init__(self, folder: Folder, brick: "Brick | None") -> None:
        self.folder = folder
        self.brick = brick

    def why_skipped(self, place: Place, found: Found, descriptor: int) -> str:
        """Why a name in the directory at *descriptor* stays where it is; empty if it is imported."""
        mode = found.status.st_mode
        if stat.S_ISSOCK(mode):
            return "a socket: its program makes it anew"
        if self.folder.is_elsewhere(place, found.status):
            return "another file system is mounted there: import it by itself"
        if place == (b"lost+found",) and os.path.ismount(self.folder.path):
            return "the file system's own"
        return self.brick.why_skipped(place, found, descriptor) if self.brick else ""

    def survey(self) -> Survey:
        """Looks at everything, and changes nothing. Raises `Refused` for a volume of Godwit."""
        survey, waiting = Survey(), [Place()]
        while waiting:
            place = waiting.pop()
            try:
                with self.folder.opened(place) as descriptor:
                    waiting += self._look(survey, place, descriptor)
            except OSError as error:
                if not place:
                    raise
                survey.unreadable.append(Skipped(place, os.strerror(error.errno or 0)))
        return survey

    def _look(self, survey: Survey, place: Place, descriptor: int) -> list[Place]:
        below = []
        found = list(names_in(descriptor))
        if {b"volume.toml", b"objects"} <= {each.name for each in found}:
            raise Refused(f"{self.folder.shown(place)} is a volume of Godwit: its files are in a network (see godwit export)")
        for each in found:
            inside = (*place, each.name)
            if why := self.why_skipped(inside, each, descriptor):
                survey.skipped.append(Skipped(inside, why))
            elif stat.S_ISDIR(each.status.st_mode):
                survey.directories += 1
                below.append(inside)
            elif stat.S_ISREG(each.status.st_mode):
                self._count(survey, each.status)
            else:
                survey.others += 1
        return below

    @staticmethod
    def _count(survey: Survey, status: os.stat_result) -> None:
        survey.files += 1
        file = File.of(status)
        if status.st_nlink == 1 or file not in survey.links:
            survey.size += status.st_size
        if status.st_nlink > 1:
            survey.links[file] += 1


GFID_XATTR = "trusted.gfid"
LINKTO_XATTR = "trusted.glusterfs.dht.linkto"
_PIECES = ("trusted.ec.", "trusted.glusterfs.shard.")
OF_BRICKS = (
    b"trusted.gfid",
    b"trusted.glusterfs.",
    b"trusted.afr.",
    b"trusted.pgfid.",
    b"trusted.bit-rot.",
    b"trusted.ec.",
)
"""Beginnings of the names of attributes that mean something to GlusterFS alone."""


class Brick:
    """A brick of GlusterFS: its own names and links among those of the files."""

    def __init__(self, top: int, depth: int) -> None:
        self._top = top  # descriptor of the brick's directory
        self._depth = depth  # how far the directory that is imported lies below it

    @classmethod
    def around(cls, path: str) -> "Brick | None":
        """The brick in which a directory lies, if it does. Raises `Refused` for one that has no whole files, `OSError`."""
        device = os.stat(path).st_dev
        for depth, place in enumerate(_upwards(os.path.realpath(path))):
            if os.stat(place).st_dev != device:
                return None
            if not os.path.isdir(os.path.join(place, ".glusterfs")):
                continue
            if os.path.isdir(shards := os.path.join(place, ".shard")) and os.listdir(shards):
                raise Refused(f"{place} is a brick with shards: its files are in pieces; copy them from a mount of the volume")
            return cls(os.open(place, _FOLDER), depth)
        return None

    def why_skipped(self, place: Place, found: Found, descriptor: int) -> str:
        """See `Walk.why_skipped`."""
        if not self._depth and place in ((b".glusterfs",), (b".shard",), (b".trashcan",)):
            return "GlusterFS's own"
        status = found.status
        if not stat.S_ISREG(status.st_mode):
            return ""
        # A brick may have as many as files: no attribute is asked for unless the rest fits.
        if status.st_size == 0 and stat.S_IMODE(status.st_mode) == stat.S_ISVTX and _has(descriptor, found.name, LINKTO_XATTR):
            return "GlusterFS's pointer to another brick"
        return ""

    def is_piece(self, names: list[str]) -> bool:
        """Whether a file with attributes of these names is a part of one."""
        return any(name.startswith(_PIECES) for name in names)

    def gfid_name(self, descriptor: int) -> tuple[bytes, bytes] | None:
        """The folder and the name of a file's link in `.glusterfs`; None if there is none."""
        try:
            number = os.getxattr(descriptor, GFID_XATTR).hex()
        except OSError:
            return None
        if len(number) != 32:
            return None
        name = "-".join((number[:8], number[8:12], number[12:16], number[16:20], number[20:]))
        return f".glusterfs/{name[:2]}/{name[2:4]}".encode(), name.encode()

    @contextmanager
    def link_of(self, descriptor: int) -> Iterator[tuple[int, bytes] | None]:
        """The open folder and the name of the file's link in `.glusterfs`; None if it has none."""
        where = self.gfid_name(descriptor)
        folder = None
        if where is not None:
            try:
                folder = os.open(where[0], _FOLDER, dir_fd=self._top)
            except OSError:
                where = None
        try:
            yield None if where is None or folder is None else (folder, where[1])
        finally:
            if folder is not None:
                os.close(folder)


def _upwards(path: str) -> Iterator[str]:
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path:
            return
        path = above


def _has(descriptor: int, name: bytes, xattr: str) -> bool:
    try:
        os.getxattr(b"/proc/self/fd/%d/%s" % (descriptor, name), xattr, follow_symlinks=False)
    except OSError:
        return False
    return True
