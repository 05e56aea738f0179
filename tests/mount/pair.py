"""The same operations on a mount and on a directory of ext4, and the demand that nobody could tell the two apart."""

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.support.acting import ANNA, BERT, ROOT, Outcome, User, acting_as, outcome
from tests.support.trees import Seen, attributes, content, differences, snapshot, walk, xattrs

PADDING = b"up/up/up"


@dataclass
class Side:
    """One of the two directories. `root` is the working directory of all calls; `base`, three levels up, is all theirs."""

    name: str
    base: bytes
    root_descriptor: int = -1
    descriptors: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        root = os.path.join(self.base, PADDING)
        os.makedirs(root)
        os.chmod(root, 0o1777)
        self.root_descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        for descriptor in (*self.descriptors, self.root_descriptor):
            os.close(descriptor)


class Pair:
    """Performs each call on both sides and compares what comes of it."""

    def __init__(self, mount: bytes, native: bytes, note: Callable[[str], None]) -> None:
        self.mount = Side("mount", mount)
        self.native = Side("ext4", native)
        self._sides = (self.mount, self.native)
        self._note = note
        self._home = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.performed = 0

    def close(self) -> None:
        for side in self._sides:
            side.close()
        os.close(self._home)

    def furnish(self) -> None:
        """Makes what most sequences need: a few files, directories and links of several owners."""
        for side in self._sides:
            self._on(side, lambda _: _furnish(), ROOT)

    @property
    def open_count(self) -> int:
        """How many descriptors are open on each side."""
        return len(self.native.descriptors)

    def both(self, label: str, call: Callable[[Side], object], user: User = ROOT) -> Outcome:
        """Calls on both sides, in their roots, and returns what came of it; fails if that differs."""
        self.performed += 1
        here, there = (self._on(side, call, user) for side in self._sides)
        self._note(f"{user.name}: {label}: {there}")
        assert here == there, f"{user.name}: {label}: {there} on ext4, {here} on the mount"
        return there

    def _tree(self, side: Side) -> dict[bytes, Seen]:
        os.fchdir(side.root_descriptor)  # short paths: the kernel asks the mount for each part of one
        try:
            return snapshot(b".")
        finally:
            os.fchdir(self._home)

    def _on(self, side: Side, call: Callable[[Side], object], user: User) -> Outcome:
        os.fchdir(side.root_descriptor)
        try:
            with acting_as(user, umask=0o027):
                return outcome(lambda: call(side))
        finally:
            os.fchdir(self._home)

    def open(self, path: bytes, flags: int, mode: int, user: User) -> None:
        """Opens on both sides; the descriptor goes to the end of the list."""

        def call(side: Side) -> None:
            side.descriptors.append(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode))

        self.both(f"open {path!r} {flags:#o} {mode:#o}", call, user)

    def with_descriptor(self, index: int, label: str, call: Callable[[int], object], user: User = ROOT) -> Outcome:
        """Calls with one of the open descriptors of each side."""
        slot = index % self.open_count
        return self.both(f"{label} of descriptor {slot}", lambda side: call(side.descriptors[slot]), user)

    def close_descriptor(self, index: int) -> None:
        slot = index % self.open_count
        self.both(f"close of descriptor {slot}", lambda side: os.close(side.descriptors.pop(slot)))

    def paths(self) -> list[bytes]:
        """All names below the root, which is the last."""
        return [*walk(os.path.join(self.native.base, PADDING)), b"."]

    def directories(self) -> list[bytes]:
        """The directories among `paths`."""
        root = os.path.join(self.native.base, PADDING)
        full = ((path, os.path.join(root, path)) for path in self.paths())
        return [path for path, at in full if os.path.isdir(at) and not os.path.islink(at)]

    def is_set_id(self, path: bytes) -> bool:
        """Whether the path leads to a regular file that runs as its owner or its group."""
        try:
            mode = os.stat(os.path.join(self.native.base, PADDING, path)).st_mode
        except OSError:
            return False
        return stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID) != 0

    def compare(self, *, above: bool = False) -> None:
        """Compares the trees and what is open; with *above* also what got above the roots, through links to `..`."""
        trees = [snapshot(side.base) if above else self._tree(side) for side in self._sides]
        found = differences(trees[0], trees[1])
        for slot in range(self.open_count):
            here, there = (dict(_seen_through(side.descriptors[slot])) for side in self._sides)
            found += [
                f"descriptor {slot}: {name} is {here[name]!r} on the mount, {there[name]!r} on ext4"
                for name in here
                if here[name] != there[name]
            ]
        assert not found, "\n".join(found)


def _furnish() -> None:
    for path in (b"b", b"b/b", b"c"):
        os.mkdir(path, 0o777)
    for path, letter in ((b"a", b"a"), (b"b/a", b"b"), (b"b/b/a", b"c")):
        with open(path, "wb") as file:
            file.write(letter * 5000)
    os.chown(b"b/a", ANNA.uid, ANNA.gid)
    os.chown(b"b/b", ANNA.uid, 5000)
    os.chown(b"b/b/a", BERT.uid, BERT.gid)
    os.chown(b"c", BERT.uid, BERT.gid)
    os.link(b"b/a", b"c/b")
    os.symlink(b"../b", b"c/c")


def _seen_through(descriptor: int) -> Iterable[tuple[str, object]]:
    """What a descriptor shows of its file, whether it still has a name or not; read through a new open file description."""
    st = os.fstat(descriptor)
    yield from attributes(st).items()
    yield "xattrs", xattrs(descriptor)
    if os.path.isfile(f"/proc/self/fd/{descriptor}"):
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield "content", content(again)
        finally:
            os.close(again)
