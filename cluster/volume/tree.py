"""A volume's objects as a tree of ordinary files, made without any process of the network.

Every object says which file it is of: its last known path, mode, owners and time of modification (`ObjectRecord`). What has no
object, and what its record does not have, is in the catalog only: directories without files, symbolic and further hard links,
extended attributes, ACLs. Nothing that the volume says is trusted: no path leads out of the tree, through no link, and over
nothing that is there already.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from cluster.errors import Refused, error_text
from cluster.volume import extents
from cluster.volume.layout import RECORD_XATTR, ObjectRecord, VolumeLayout, read_record
from cluster.volume.regular import open_regular

LOST = "lost+found"  # in the tree: for objects whose path is not known, or cannot be one
NAME_MAX = 255  # bytes
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SET_ID = stat.S_ISUID | stat.S_ISGID


class Outcome(StrEnum):
    """What became of an object."""

    MADE = "made"
    NAMELESS = "nameless"
    """Made in `LOST`."""
    REPLACED = "replaced"
    """The tree had an older version of the file, from another volume."""
    THERE = "there"
    """The tree had this version of it, or a newer one."""
    FAILED = "failed"


class Exported(NamedTuple):
    """One object."""

    ino: int
    outcome: Outcome
    path: str  # in the tree; of one that failed its object's
    size: int  # bytes
    why: str = ""  # it failed


class _TakenError(Exception):
    """Something else than a directory is in the way."""


@contextmanager
def unattended(layout: VolumeLayout) -> Iterator[None]:
    """While inside, no agent works with the volume. Raises `Refused` if one does, or if there is no volume."""
    layout.identity()
    descriptor = open_regular(layout.root / "volume.toml", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Refused(f"an agent works with {layout.root}: stop it first, or copy the files from a mount") from None
    try:
        yield
    finally:
        os.close(descriptor)


def count_objects(layout: VolumeLayout) -> int:
    """How many there are."""
    return sum(1 for _ in _objects(layout))


def export_tree(layout: VolumeLayout, target: Path, *, copies: bool) -> Iterator[Exported]:
    """Makes the tree at *target*, object by object: hard links, or copies that share blocks where the file system can.

    It may be repeated, and may go on with what other volumes have made: of each file the newest version stays. A name that
    another file has gets the inode number behind it. The objects themselves get their files' modes and owners where they are
    linked; set-id bits are left out. Raises `Refused` for a tree within the volume, and for links to another file system;
    `OSError`.
    """
    root, wanted = layout.root.resolve(), target.resolve()
    if wanted.is_relative_to(root) or root.is_relative_to(wanted):
        raise Refused(f"{target} and the volume {layout.root}: neither may lie within the other")
    nearest = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not copies and nearest.stat().st_dev != layout.objects.stat().st_dev:
        raise Refused(f"{target} is on another file system than {layout.root}: files can be copied there (--copy), not linked")
    target.mkdir(parents=True, exist_ok=True)
    top = os.open(target, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        tree = _Tree(top, copies=copies)
        for ino, path in _objects(layout):
            yield _exported(tree, ino, path)
    finally:
        os.close(top)


def _objects(layout: VolumeLayout) -> Iterator[tuple[int, str]]:
    for folder in sorted(_entries(layout.objects), key=lambda entry: entry.name):
        if folder.is_dir(follow_symlinks=False):
            for entry in _entries(folder):
                if entry.name.isascii() and entry.name.isdigit():
                    yield int(entry.name), entry.path


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _exported(tree: "_Tree", ino: int, path: str) -> Exported:
    size = 0
    try:
        descriptor = open_regular(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            record = read_record(descriptor) or ObjectRecord(ino, 0, 0)
            outcome, name = tree.add(_Source(ino, path, descriptor, record))
        finally:
            os.close(descriptor)
    except OSError as error:
        # One that cannot be read keeps no other from being saved; a full disk does.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        return Exported(ino, Outcome.FAILED, path, size, error_text(error))
    return Exported(ino, outcome, name, size)


class _Source(NamedTuple):
    """An object that is open."""

    ino: int
    path: str
    descriptor: int
    record: ObjectRecord


class _Tree:
    """The tree that is being made, by the descriptor of its top."""

    def __init__(self, top: int, *, copies: bool) -> None:
        self._top = top
        self._copies = copies

    def add(self, source: _Source) -> tuple[Outcome, str]:
        """What became of the object, and its path in the tree."""
        parts = path_parts(source.record.path)
        if parts:
            with suppress(_TakenError):
                return self._add_at(source, parts)
        lost = [LOST, str(source.ino)]
        try:
            outcome, name = self._add_at(source, lost)
        except _TakenError:
            raise FileExistsError(errno.EEXIST, "something else is there", LOST) from None
        return (Outcome.NAMELESS if outcome is Outcome.MADE else outcome), name

    def _add_at(self, source: _Source, parts: list[str]) -> tuple[Outcome, str]:
        folder = self._open_folder(parts[:-1])
        try:
            for name in (parts[-1], numbered(parts[-1], source.ino)):
                outcome = self._add_in(folder, name, source)
                if outcome is not None:
                    return outcome, "/".join([*parts[:-1], name])
        finally:
            os.close(folder)
        raise _TakenError

    def _open_folder(self, parts: list[str]) -> int:
        """A descriptor of the directory; those on the way are made. Raises `_TakenError` if one cannot be."""
        here = os.dup(self._top)
        for part in parts:
            above = here
            try:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=above)
                here = os.open(part, _DIRECTORY, dir_fd=above)
            except OSError as error:
                # ELOOP: a symbolic link.
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise _TakenError from error
                raise
            finally:
                os.close(above)
        return here

    def _add_in(self, folder: int, name: str, source: _Source) -> Outcome | None:
        """None: the name is another file's."""
        try:
            there = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            self._make(folder, name, source)
            return Outcome.MADE
        known = _record_at(folder, name) if stat.S_ISREG(there.st_mode) else None
        if os.path.samestat(there, os.fstat(source.descriptor)):
            # Perhaps an attempt before this one came no further than the link.
            if not self._copies:
                _set_attributes(source.descriptor, source.record)
            return Outcome.THERE
        if known is None or known.ino != source.record.ino:
            return None
        if (known.home_epoch, known.version) >= (source.record.home_epoch, source.record.version):
            return Outcome.THERE
        self._make(folder, name, source)
        return Outcome.REPLACED

    def _make(self, folder: int, name: str, source: _Source) -> None:
        """Puts the file there as a whole, also in the place of an older version."""
        temporary = f".godwit-export.{source.ino}"
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        try:
            if self._copies:
                _copy(source, temporary, folder)
            else:
                os.link(source.path, temporary, dst_dir_fd=folder, follow_symlinks=False)
                _set_attributes(source.descriptor, source.record)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise


def path_parts(path: str) -> list[str]:
    """The names of a path; none if it is not known, is only the end of one that was too long, or cannot be one of a tree."""
    parts = path.split("/")[1:]
    good = path.startswith("/") and all(
        part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) <= NAME_MAX for part in parts
    )
    return parts if good else []


def numbered(name: str, ino: int) -> str:
    """The name with the number behind it; of one that gets too long the beginning."""
    ending = f".{ino}"
    return os.fsdecode(os.fsencode(name)[: NAME_MAX - len(ending)]) + ending


def _record_at(folder: int, name: str) -> ObjectRecord | None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        return read_record(descriptor)
    finally:
        os.close(descriptor)


def _copy(source: _Source, name: str, folder: int) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    copied = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        extents.copy_all(source.descriptor, copied)
        with suppress(OSError):  # a file system without attributes: then it is copied anew when this is repeated
            os.setxattr(copied, RECORD_XATTR, os.getxattr(source.descriptor, RECORD_XATTR))
        _set_attributes(copied, source.record)
    finally:
        os.close(copied)


def _set_attributes(descriptor: int, record: ObjectRecord) -> None:
    """As the file had them; who is not root keeps being the owner."""
    if not record.mode:
        return
    with suppress(PermissionError):
        os.fchown(descriptor, record.uid, record.gid)
    os.fchmod(descriptor, stat.S_IMODE(record.mode) & ~_SET_ID)
    os.utime(descriptor, ns=(record.mtime_ns, record.mtime_ns))
