"""Changes that are made in the step in which they are read: what the kernel's messages say, and what is left to pyfuse3."""

import stat
import struct
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cluster.clock import file_time_ns
from cluster.messages import RENAME_NOREPLACE, Node, SetAttr
from fusefs.caching.cache import EntryReply
from fusefs.content.handles import OpenReply
from fusefs.content.open_inode import IoMode
from fusefs.handlers.overlay import Overlay
from fusefs.handlers.quick_changes import QuickChanges
from fusefs.kernel.replies import attributes, entry
from fusefs.kernel.requests import Opcode, Raw
from fusefs.kernel.stream import OpenFlag

DIRECTORY, UID, GID = 7, 1000, 1001
NODE = Node(9, 0o100644, 1, UID, GID, 0, 0, 0, 1, 2, 3, 4)
REPLY = EntryReply(NODE, 2.5, 0.0)
ENTRY = entry(REPLY)


@dataclass
class Mount:
    """The overlay as far as changes need it. It notes what is asked, and answers, unless somebody else would have to be asked."""

    answers: bool = True
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    mode: IoMode = IoMode.PASSED

    def _note(self, answer: object, *what: object) -> Any:
        self.asked.append(what)
        return answer if self.answers else None

    def create_known(self, *what: object) -> Any:
        return self._note((33, REPLY), "create", *what)

    def make_known(self, *what: object, rdev: int = 0, target: bytes = b"") -> Any:
        return self._note(REPLY, "make", *what, rdev, target)

    def link_known(self, *what: object) -> Any:
        return self._note(REPLY, "link", *what)

    def unlink_known(self, *what: object) -> bool:
        return bool(self._note(True, "unlink", *what))

    def rmdir_known(self, *what: object) -> bool:
        return bool(self._note(True, "rmdir", *what))

    def rename_known(self, *what: object) -> bool:
        return bool(self._note(True, "rename", *what))

    def setattr_known(self, change: SetAttr, uid: int) -> Any:
        return self._note(REPLY, "setattr", change, uid)

    def reply(self, number: int) -> OpenReply:
        return OpenReply(self.mode, False, 5 if self.mode is IoMode.PASSED else 0)


def quick(mount: Mount) -> QuickChanges:
    part = cast(Any, mount)
    unused = cast(Any, None)
    overlay = Overlay(unused, part, part, part, unused, unused, unused, unused, part, unused)
    return QuickChanges(overlay)


def ask(mount: Mount, opcode: Opcode, body: bytes) -> bytes | None:
    return quick(mount).handlers()[opcode](Raw(opcode, 1, DIRECTORY, UID, GID, 42, body))


# As `fs/fuse/dir.c` sends them.
REQUESTS = {
    Opcode.MKNOD: (
        struct.pack("<IIII", stat.S_IFIFO | 0o644, 77, 0o22, 0) + b"pipe\0",
        "make",
        b"pipe",
        stat.S_IFIFO | 0o644,
        0o22,
        77,
    ),
    Opcode.MKDIR: (struct.pack("<II", 0o2755, 0o22) + b"folder\0", "make", b"folder", stat.S_IFDIR | 0o2755, 0o22, 0),
}


@pytest.mark.parametrize("opcode", REQUESTS)
def test_what_is_made_is_told(opcode: Opcode) -> None:
    body, what, name, mode, umask, rdev = REQUESTS[opcode]
    mount = Mount()
    assert ask(mount, opcode, body) == ENTRY
    assert mount.asked == [(what, DIRECTORY, name, mode, umask, UID, GID, rdev, b"")]
    assert ask(Mount(answers=False), opcode, body) is None


@pytest.mark.parametrize(
    ("mode", "flags", "backing"),
    [(IoMode.PASSED, OpenFlag.PASSTHROUGH, 5), (IoMode.CACHED, 0, 0), (IoMode.DIRECT, OpenFlag.DIRECT_IO, 0)],
)
def test_a_file_is_made_and_opened(mode: IoMode, flags: int, backing: int) -> None:
    mount = Mount(mode=mode)
    body = struct.pack("<IIII", 0o101102, 0o100640, 0o27, 0) + b"new file\0"
    assert ask(mount, Opcode.CREATE, body) == ENTRY + struct.pack("<QIi", 33, flags, backing)
    assert mount.asked == [("create", DIRECTORY, b"new file", 0o100640, 0o27, UID, GID, 0o101102)]
    assert ask(Mount(answers=False), Opcode.CREATE, body) is None


def test_mknod_of_a_file_is_left_to_who_can_wait_for_a_disk() -> None:
    mount = Mount()
    assert ask(mount, Opcode.MKNOD, struct.pack("<IIII", stat.S_IFREG | 0o644, 0, 0o22, 0) + b"file\0") is None
    assert mount.asked == []


def test_names_are_changed() -> None:
    changes = {
        Opcode.UNLINK: (b"name\0", ("unlink", DIRECTORY, b"name")),
        Opcode.RMDIR: (b"name\0", ("rmdir", DIRECTORY, b"name")),
        Opcode.RENAME: (struct.pack("<Q", 8) + b"old\0new\0", ("rename", DIRECTORY, b"old", 8, b"new", 0)),
        Opcode.RENAME2: (
            struct.pack("<QII", 8, RENAME_NOREPLACE, 0) + b"old\0new\0",
            ("rename", DIRECTORY, b"old", 8, b"new", RENAME_NOREPLACE),
        ),
    }
    for opcode, (body, expected) in changes.items():
        mount = Mount()
        assert ask(mount, opcode, body) == b""
        assert mount.asked == [expected]
        assert ask(Mount(answers=False), opcode, body) is None


def test_links_are_made() -> None:
    mount = Mount()
    assert ask(mount, Opcode.SYMLINK, b"link\0where it points\0") == ENTRY
    assert ask(mount, Opcode.LINK, struct.pack("<Q", 9) + b"second\0") == ENTRY
    assert mount.asked == [
        ("make", DIRECTORY, b"link", stat.S_IFLNK | 0o777, 0, UID, GID, 0, b"where it points"),
        ("link", 9, DIRECTORY, b"second"),
    ]
    assert ask(Mount(answers=False), Opcode.SYMLINK, b"link\0target\0") is None
    assert ask(Mount(answers=False), Opcode.LINK, struct.pack("<Q", 9) + b"second\0") is None


def set_attributes(sets: int) -> bytes:
    """`fuse_setattr_in` with all fields filled, of which *sets* are meant."""
    times = struct.pack("<qqqIII", -5, 6, 7, 100, 200, 300)
    return struct.pack("<IIQQQ", sets, 0, 1, 2, 3) + times + struct.pack("<IIIII", 0o104755, 0, 12, 13, 0)


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (1 << 0, {"mode": 0o4755}),
        (1 << 1, {"uid": 12}),
        (1 << 2, {"gid": 13}),
        (1 << 4, {"atime_ns": -4_999_999_900}),
        (1 << 5, {"mtime_ns": 6_000_000_200}),
        (1 << 4 | 1 << 7 | 1 << 5 | 1 << 8, {"atime_ns": "now", "mtime_ns": "now"}),
        (1 << 0 | 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 11, {"mode": 0o4755, "uid": 12, "gid": 13}),
    ],
)
def test_attributes_are_changed(sets: int, expected: dict[str, Any]) -> None:
    mount = Mount()
    before_ns = file_time_ns()
    assert ask(mount, Opcode.SETATTR, set_attributes(sets)) == attributes(REPLY)
    ((_, change, uid),) = mount.asked
    assert before_ns <= change.now_ns <= file_time_ns()
    assert uid == UID
    known = {name: change.now_ns if value == "now" else value for name, value in expected.items()}
    assert change == SetAttr(DIRECTORY, change.now_ns, **known)
    assert ask(Mount(answers=False), Opcode.SETATTR, set_attributes(sets)) is None


def test_a_change_of_the_length_is_left_to_who_can_wait_for_a_disk() -> None:
    mount = Mount()
    assert ask(mount, Opcode.SETATTR, set_attributes(1 << 3)) is None
    assert mount.asked == []
