"""Random operations, the same ones on a mount and on ext4: every result, every errno and the trees must be the same.

The operations are the same in each run: 10,000 where files are passed through, 3,000 where they are not.
`GODWIT_RANDOM_EXAMPLES=N` tries N fresh sequences instead. A failure prints what was done up to it and what came of it on ext4;
with `GODWIT_RANDOM_SHRINK=1` it is shortened first, which takes some minutes.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.mount.pair import Pair, Side
from tests.support import choices
from tests.support.acting import RENAME_EXCHANGE, RENAME_NOREPLACE, ROOT, User, fallocate, link_open, renameat2
from tests.support.choices import Where
from tests.support.extents import extents_from
from tests.support.modes import FALLBACK, PASSTHROUGH, both_modes
from tests.support.trees import attributes, xattrs

OPERATIONS = {PASSTHROUGH: 6_000, FALLBACK: 3_000}
STEPS = 80
EXAMPLES = {PASSTHROUGH: 100, FALLBACK: 60}
MAX_OPEN = 8
COMPARED_ONCE_IN = 8
RENAME_FLAGS = (0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_NOREPLACE | RENAME_EXCHANGE)


def some_open(machine: "RandomOperations") -> bool:
    return machine.pair.open_count > 0


class RandomOperations(RuleBasedStateMachine):
    """One sequence of operations, in fresh directories."""

    mount = ""
    native = ""
    performed = 0

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(
            os.fsencode(tempfile.mkdtemp(dir=self.mount)), os.fsencode(tempfile.mkdtemp(dir=self.native)), lambda text: note(text)
        )
        self.pair.furnish()

    def teardown(self) -> None:
        type(self).performed += self.pair.performed
        try:
            self.pair.compare(above=True)
        finally:
            self.pair.close()

    def at(self, where: Where) -> bytes:
        candidates = self.pair.directories() if where.kind == "fresh" else self.pair.paths()
        path = candidates[where.index % len(candidates)]
        if where.kind != "existing":
            path = where.name if path == b"." else os.path.join(path, where.name)
        return path + where.suffix

    # ------------------------------------------------------------------------------------------------ descriptors

    @rule(
        where=choices.paths | choices.new_paths,
        flags=choices.flags,
        mode=choices.modes,
        user=choices.users,
    )
    def open(self, where: Where, flags: int, mode: int, user: User) -> None:
        if self.pair.open_count >= MAX_OPEN:
            self.pair.close_descriptor(0)
        self.pair.open(self.at(where), flags, mode, user)

    @rule(where=choices.new_paths, mode=choices.modes)
    def create(self, where: Where, mode: int) -> None:
        if self.pair.open_count < MAX_OPEN:
            self.pair.open(self.at(where), os.O_RDWR | os.O_CREAT, mode, ROOT)

    @rule(where=choices.paths, flags=choices.unnamed_flags, mode=choices.modes, user=choices.users)
    def open_unnamed(self, where: Where, flags: int, mode: int, user: User) -> None:
        if self.pair.open_count < MAX_OPEN:
            self.pair.open(self.at(where), flags, mode, user)

    @precondition(some_open)
    @rule(index=choices.slots, new=choices.new_paths, user=choices.users)
    def link_open(self, index: int, new: Where, user: User) -> None:
        path = self.at(new)
        self.pair.with_descriptor(index, f"link as {path!r}", lambda fd: link_open(fd, path), user)

    @precondition(some_open)
    @rule(index=choices.slots)
    def close(self, index: int) -> None:
        self.pair.close_descriptor(index)

    @precondition(some_open)
    @rule(index=choices.slots, data=choices.data, user=choices.users)
    def write(self, index: int, data: bytes, user: User) -> None:
        self.pair.with_descriptor(index, f"write {len(data)} bytes {data[:1]!r}", lambda fd: os.write(fd, data), user)

    @precondition(some_open)
    @rule(index=choices.slots, data=choices.data, offset=choices.offsets, user=choices.users)
    def pwrite(self, index: int, data: bytes, offset: int, user: User) -> None:
        label = f"pwrite {len(data)} bytes {data[:1]!r} at {offset}"
        self.pair.with_descriptor(index, label, lambda fd: os.pwrite(fd, data, offset), user)

    @precondition(some_open)
    @rule(index=choices.slots, length=choices.sizes)
    def read(self, index: int, length: int) -> None:
        length = min(length, 1 << 20)
        self.pair.with_descriptor(index, f"read {length}", lambda fd: os.read(fd, length))

    @precondition(some_open)
    @rule(index=choices.slots, length=choices.sizes, offset=choices.offsets)
    def pread(self, index: int, length: int, offset: int) -> None:
        length = min(length, 1 << 20)
        self.pair.with_descriptor(index, f"pread {length} at {offset}", lambda fd: os.pread(fd, length, offset))

    @precondition(some_open)
    @rule(index=choices.slots, offset=choices.offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]))
    def seek(self, index: int, offset: int, whence: int) -> None:
        def call(fd: int) -> object:
            directory = stat.S_ISDIR(os.fstat(fd).st_mode)
            return "where a directory ends is its own affair" if directory else os.lseek(fd, offset, whence)

        self.pair.with_descriptor(index, f"seek {offset} from {whence}", call)

    @precondition(some_open)
    @rule(index=choices.slots, size=choices.sizes, user=choices.users)
    def ftruncate(self, index: int, size: int, user: User) -> None:
        self.pair.with_descriptor(index, f"ftruncate to {size}", lambda fd: os.ftruncate(fd, size), user)

    @precondition(some_open)
    @rule(index=choices.slots, mode=choices.allocations, offset=choices.offsets, length=choices.sizes, user=choices.users)
    def fallocate(self, index: int, mode: int, offset: int, length: int, user: User) -> None:
        label = f"fallocate mode {mode:#x}, {length} at {offset}"
        self.pair.with_descriptor(index, label, lambda fd: fallocate(fd, mode, offset, length), user)

    @precondition(some_open)
    @rule(index=choices.slots, offset=choices.offsets)
    def seek_data_and_holes(self, index: int, offset: int) -> None:
        self.pair.with_descriptor(index, f"seek data and holes from {offset}", lambda fd: extents_from(fd, offset))

    @precondition(some_open)
    @rule(read=choices.slots, written=choices.slots, start=choices.offsets, offset=choices.offsets, length=choices.sizes)
    def copy_range(self, read: int, written: int, start: int, offset: int, length: int) -> None:
        one, other = read % self.pair.open_count, written % self.pair.open_count

        def call(side: Side) -> int:
            return os.copy_file_range(side.descriptors[one], side.descriptors[other], length, start, offset)

        self.pair.both(f"copy {length} from {start} of descriptor {one} to {offset} of {other}", call)

    @precondition(some_open)
    @rule(index=choices.slots, data_only=st.booleans())
    def sync(self, index: int, data_only: bool) -> None:
        self.pair.with_descriptor(index, f"fsync data_only={data_only}", os.fdatasync if data_only else os.fsync)

    @precondition(some_open)
    @rule(index=choices.slots)
    def fstat(self, index: int) -> None:
        self.pair.with_descriptor(index, "fstat", lambda fd: attributes(os.fstat(fd)))

    @precondition(some_open)
    @rule(index=choices.slots, mode=choices.modes, user=choices.users)
    def fchmod(self, index: int, mode: int, user: User) -> None:
        self.pair.with_descriptor(index, f"fchmod {mode:#o}", lambda fd: os.fchmod(fd, mode), user)

    @precondition(some_open)
    @rule(index=choices.slots, times=choices.times, user=choices.users)
    def futime(self, index: int, times: tuple[int, int] | None, user: User) -> None:
        self.pair.with_descriptor(index, f"utime {times}", lambda fd: _utime(fd, times), user)

    @precondition(some_open)
    @rule(index=choices.slots, user=choices.users)
    def list_open(self, index: int, user: User) -> None:
        self.pair.with_descriptor(index, "listdir", lambda fd: sorted(os.listdir(fd)), user)

    # ------------------------------------------------------------------------------------------------ names

    @rule(where=choices.new_paths, mode=choices.modes, user=choices.users)
    def mkdir(self, where: Where, mode: int, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"mkdir {path!r} {mode:#o}", lambda _: os.mkdir(path, mode), user)

    @rule(where=choices.new_paths, device=st.sampled_from(choices.DEVICES), mode=choices.modes, user=choices.users)
    def mknod(self, where: Where, device: tuple[int, int], mode: int, user: User) -> None:
        path, (kind, number) = self.at(where), device
        self.pair.both(f"mknod {path!r} {kind | mode:#o} {number}", lambda _: os.mknod(path, kind | mode, number), user)

    @rule(where=choices.new_paths, text=choices.targets, user=choices.users)
    def symlink(self, where: Where, text: bytes, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"symlink {path!r} to {text[:20]!r}", lambda _: os.symlink(text, path), user)

    @rule(where=choices.paths, user=choices.users)
    def readlink(self, where: Where, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"readlink {path!r}", lambda _: os.readlink(path), user)

    @rule(old=choices.paths, new=choices.new_paths, user=choices.users)
    def link(self, old: Where, new: Where, user: User) -> None:
        source, path = self.at(old), self.at(new)
        self.pair.both(f"link {source!r} as {path!r}", lambda _: os.link(source, path, follow_symlinks=False), user)

    @rule(where=choices.paths, user=choices.users)
    def unlink(self, where: Where, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"unlink {path!r}", lambda _: os.unlink(path), user)

    @rule(where=choices.paths, user=choices.users)
    def rmdir(self, where: Where, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"rmdir {path!r}", lambda _: os.rmdir(path), user)

    @rule(old=choices.paths, new=choices.paths, flags=st.sampled_from(RENAME_FLAGS), user=choices.users)
    def rename(self, old: Where, new: Where, flags: int, user: User) -> None:
        source, path = self.at(old), self.at(new)

        def call(_: object) -> bool:
            before = os.lstat(source).st_ino if user is ROOT else None
            renameat2(source, path, flags)
            return before is None or os.lstat(path).st_ino == before

        self.pair.both(f"rename {source!r} to {path!r} flags {flags}; same st_ino", call, user)

    @rule(where=choices.paths, user=choices.users)
    def listing(self, where: Where, user: User) -> None:
        path = self.at(where)

        def call(_: object) -> object:
            with os.scandir(path) as entries:
                return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)

        self.pair.both(f"list {path!r}", call, user)

    # ------------------------------------------------------------------------------------------------ attributes

    @rule(where=choices.paths, follow=st.booleans(), user=choices.users)
    def stat(self, where: Where, follow: bool, user: User) -> None:
        path = self.at(where)
        label = f"{'stat' if follow else 'lstat'} {path!r}"
        self.pair.both(label, lambda _: attributes(os.stat(path, follow_symlinks=follow)), user)

    @rule(where=choices.paths, mode=st.integers(0, 7), user=choices.users)
    def access(self, where: Where, mode: int, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"access {path!r} {mode}", lambda _: os.access(path, mode, effective_ids=True), user)

    @rule(where=choices.paths, size=choices.sizes, user=choices.users)
    def truncate(self, where: Where, size: int, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"truncate {path!r} to {size}", lambda _: os.truncate(path, size), user)

    @rule(where=choices.paths, mode=choices.modes, user=choices.users)
    def chmod(self, where: Where, mode: int, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"chmod {path!r} {mode:#o}", lambda _: os.chmod(path, mode), user)

    @rule(where=choices.paths, owner=choices.owners, group=choices.groups, follow=st.booleans(), user=choices.users)
    def chown(self, where: Where, owner: int, group: int, follow: bool, user: User) -> None:
        if owner == group == -1:
            return  # docs/testing.md: set-id bits that nothing else is asked to change
        path = self.at(where)
        if user != ROOT and self.pair.is_set_id(path):
            return  # docs/testing.md: who may not do it takes the bits of a file that is open for writing
        label = f"chown {path!r} {owner}:{group} follow={follow}"
        self.pair.both(label, lambda _: os.chown(path, owner, group, follow_symlinks=follow), user)

    @rule(where=choices.paths, times=choices.times, follow=st.booleans(), user=choices.users)
    def utime(self, where: Where, times: tuple[int, int] | None, follow: bool, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"utime {path!r} {times} follow={follow}", lambda _: _utime(path, times, follow=follow), user)

    @rule(where=choices.paths)
    def statvfs(self, where: Where) -> None:
        path = self.at(where)
        self.pair.both(f"statvfs {path!r}", lambda _: os.statvfs(path).f_namemax)

    # ------------------------------------------------------------------------------------------------ extended attributes

    @rule(
        where=choices.paths,
        name=choices.xattr_names,
        value=choices.xattr_values,
        flags=choices.xattr_flags,
        follow=st.booleans(),
        user=choices.users,
    )
    def setxattr(self, where: Where, name: bytes, value: bytes, flags: int, follow: bool, user: User) -> None:
        path = self.at(where)
        label = f"setxattr {path!r} {name!r} {len(value)} bytes flags {flags} follow={follow}"
        self.pair.both(label, lambda _: os.setxattr(path, name, value, flags, follow_symlinks=follow), user)

    @rule(where=choices.paths, name=choices.acl_names, value=choices.acls, user=choices.users)
    def set_acl(self, where: Where, name: bytes, value: bytes, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"setxattr {path!r} {name!r} {value!r}", lambda _: os.setxattr(path, name, value), user)

    @rule(where=choices.paths, name=choices.xattr_names | choices.acl_names, user=choices.users)
    def getxattr(self, where: Where, name: bytes, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"getxattr {path!r} {name!r}", lambda _: os.getxattr(path, name), user)

    @rule(where=choices.paths, user=choices.users)
    def listxattr(self, where: Where, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"listxattr {path!r}", lambda _: sorted(os.listxattr(path)), user)

    @rule(where=choices.paths, name=choices.xattr_names | choices.acl_names, user=choices.users)
    def removexattr(self, where: Where, name: bytes, user: User) -> None:
        path = self.at(where)
        self.pair.both(f"removexattr {path!r} {name!r}", lambda _: os.removexattr(path, name), user)

    @precondition(some_open)
    @rule(index=choices.slots, name=choices.xattr_names, value=choices.xattr_values)
    def fsetxattr(self, index: int, name: bytes, value: bytes) -> None:
        def call(fd: int) -> object:
            os.setxattr(fd, name, value)
            return xattrs(fd)

        self.pair.with_descriptor(index, f"fsetxattr {name!r} {len(value)} bytes", call)

    # ------------------------------------------------------------------------------------------------ everything

    @rule(chance=st.integers(1, COMPARED_ONCE_IN))
    def compare(self, chance: int) -> None:
        if chance == COMPARED_ONCE_IN:
            self.pair.compare()


def _utime(path: bytes | int, times: tuple[int, int] | None, *, follow: bool = True) -> int | None:
    """Sets the times; returns the atime, which can be compared at this moment, if one was set."""
    if isinstance(path, int):
        os.utime(path, ns=times) if times else os.utime(path)
        return os.fstat(path).st_atime_ns if times else None
    os.utime(path, ns=times, follow_symlinks=follow) if times else os.utime(path, follow_symlinks=follow)
    return os.stat(path, follow_symlinks=follow).st_atime_ns if times else None


@pytest.mark.timeout(900)
@both_modes
def test_random_operations_give_what_they_give_on_ext4(
    directory: Path, way_of_files: str, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    RandomOperations.mount, RandomOperations.native, RandomOperations.performed = str(directory), str(tmp_path), 0
    examples = int(os.environ.get("GODWIT_RANDOM_EXAMPLES", "0"))
    run_state_machine_as_test(
        RandomOperations,
        settings=settings(
            derandomize=not examples,
            max_examples=examples or EXAMPLES[way_of_files],
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=False,
            phases=[Phase.generate, *([Phase.shrink] if "GODWIT_RANDOM_SHRINK" in os.environ else [])],
            suppress_health_check=list(HealthCheck),
        ),
    )
    tell(f"{RandomOperations.performed} operations")
    assert examples or RandomOperations.performed >= OPERATIONS[way_of_files]
