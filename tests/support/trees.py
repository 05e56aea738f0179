"""What a tree looks like to programs: everything that must be the same on a mount and on ext4.

What differs between ext4 and any FUSE file system, and is left out for that reason everywhere in these tests:

- `st_dev`; the values of `st_ino` (but the same names must share them), `st_blksize`, `st_blocks`;
- `st_size` of directories, and the order of a listing: each file system's own affair;
- `st_atime`, unless it has just been set: ext4 itself keeps it only roughly (`relatime`);
- the set-group-id bit of a regular file that its group cannot execute: the kernel leaves it where ext4 takes it away
  (`fuse_setattr` in Linux's fs/fuse/dir.c);
- `st_ctime`, which nobody can set: that it moves when it should is tested by itself (`test_times.py`);
- where holes begin (see `tests.mount.extents`), and the modes of `fallocate` that FUSE refuses by itself.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, fields

SET_BY_TESTS_BEFORE_NS = 1_577_836_800 * 10**9  # 2020: an earlier time was set by a test, a later one is "now"
SET_BY_TESTS_AFTER_NS = 4_102_444_800 * 10**9  # 2100
WHOLE_BYTES = 4 << 20
EDGE_BYTES = 64 << 10
MAX_RUNS = 12


@dataclass(frozen=True)
class Seen:
    """One name, as a program sees it. `same_file_as` is the first path of the same inode; `mtime_ns` is None for "now"."""

    mode: str
    nlink: int
    uid: int
    gid: int
    size: int
    rdev: int
    mtime_ns: int | None
    same_file_as: bytes
    target: bytes
    content: object
    xattrs: tuple[tuple[bytes, bytes], ...]


def attributes(st: os.stat_result) -> dict[str, object]:
    """The fields of *st* that must be the same on a mount and on ext4."""
    mode = st.st_mode
    if stat.S_ISREG(mode) and not mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return {
        "mode": f"{stat.filemode(mode)} {mode:o}",
        "nlink": st.st_nlink,
        "uid": st.st_uid,
        "gid": st.st_gid,
        "size": 0 if stat.S_ISDIR(st.st_mode) else st.st_size,
        "rdev": st.st_rdev,
        "mtime_ns": settled(st.st_mtime_ns),
    }


def settled(time_ns: int) -> int | None:
    """A time that a test has set, or None for one that the file system took from the clock."""
    return time_ns if not SET_BY_TESTS_BEFORE_NS <= time_ns < SET_BY_TESTS_AFTER_NS else None


def walk(root: bytes) -> list[bytes]:
    """The paths of all names below *root*, relative to it, in order; symbolic links are not followed."""
    found: list[bytes] = []
    waiting = [b""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(os.path.join(root, inside) or b".") as entries:
            for entry in entries:
                path = os.path.join(inside, entry.name)
                found.append(path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
    return sorted(found)


def snapshot(root: bytes) -> dict[bytes, Seen]:
    """Everything below *root* by its relative path, with *root* itself as `.`."""
    first: dict[int, bytes] = {}
    tree = {}
    for path in [b".", *walk(root)]:
        full = os.path.join(root, path)
        st = os.lstat(full)
        tree[path] = Seen(
            **attributes(st),  # type: ignore[arg-type]  # the fields' names are the same
            same_file_as=first.setdefault(st.st_ino, path),
            target=os.readlink(full) if stat.S_ISLNK(st.st_mode) else b"",
            content=_content_at(full) if stat.S_ISREG(st.st_mode) else None,
            xattrs=xattrs(full),
        )
    return tree


def xattrs(path: bytes | int) -> tuple[tuple[bytes, bytes], ...]:
    """All extended attributes, in the order of their names."""
    options = {} if isinstance(path, int) else {"follow_symlinks": False}
    names = sorted(os.fsencode(name) for name in os.listxattr(path, **options) if name != "security.selinux")
    return tuple((name, os.getxattr(path, name, **options)) for name in names)


def content(descriptor: int) -> object:
    """The bytes of an open file in a form that is short enough to be read: runs of equal bytes, else a digest.

    Of a file that is too large to be read as a whole (they are sparse here), the beginning and the end.
    """
    size = os.fstat(descriptor).st_size
    if size <= WHOLE_BYTES:
        return _runs(os.pread(descriptor, size + 1, 0))
    return _runs(os.pread(descriptor, EDGE_BYTES, 0)), _runs(os.pread(descriptor, EDGE_BYTES + 1, size - EDGE_BYTES))


def _content_at(path: bytes) -> object:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return content(descriptor)
    finally:
        os.close(descriptor)


def _runs(data: bytes) -> object:
    runs = []
    for match in re.finditer(rb"(.)\1*", data, re.DOTALL):
        runs.append((match[1], len(match[0])))
        if len(runs) > MAX_RUNS:
            return len(data), hashlib.blake2b(data).hexdigest()
    return tuple(runs)


def differences(
    mount: dict[bytes, Seen], native: dict[bytes, Seen], ignore: Iterable[str] = (), names: tuple[str, str] = ("mount", "ext4")
) -> list[str]:
    """One line for each thing that is not the same in two trees; *ignore* names fields."""
    left, right = names
    lines = [f"{path!r} is only on {left}" for path in sorted(mount.keys() - native.keys())]
    lines += [f"{path!r} is only on {right}" for path in sorted(native.keys() - mount.keys())]
    compared = [field.name for field in fields(Seen) if field.name not in set(ignore)]
    for path in sorted(mount.keys() & native.keys()):
        for name in compared:
            here, there = getattr(mount[path], name), getattr(native[path], name)
            if here != there:
                lines.append(f"{path!r}: {name} is {here!r} on {left}, {there!r} on {right}")
    return lines
