"""What the extension tells of names and attributes, beside a model, under AddressSanitizer."""

import errno
import random
import struct
import subprocess
from pathlib import Path

import pytest

from cluster.messages import XATTRS_UNKNOWN, XattrKind
from tests.fusefs.kernel.drivers import built

LOOKUP, GETATTR, OPEN, GETXATTR, LISTXATTR = 1, 3, 14, 22, 23
NS = 10**9
ATTRIBUTES_BYTES, NAME_MAX = 88, 255
HISTORY = 500_000  # commands
NAMESPACES = (b"user.", b"trusted.", b"security.")
XATTRS = [
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"security.selinux",
    b"user.x",
    b"trusted.y",
    b"system.other",
    b"system.posix_acl_other",
    *NAMESPACES,
    b"",
]
NAMES = [b"a", b"b", b"\xff", b"longer", b"x" * NAME_MAX, b"x" * (NAME_MAX - 1) + b"y"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("names"), "names")


def can_be(name: bytes) -> bool:
    """Whether there can be an attribute of that name."""
    return XattrKind.of(name) is not XattrKind.OTHER or (name.startswith(NAMESPACES) and name not in NAMESPACES)


def attributes(mark: int) -> bytes:
    return bytes([mark]) * ATTRIBUTES_BYTES


def seconds(left_ns: int) -> tuple[int, int]:
    return divmod(left_ns, NS)


class History:
    """Commands for the driver, and what a model of it in Python says to each."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, bytes]] = []
        self.expected: list[str] = []
        self.answered = 0
        self._attributes: dict[int, tuple[bytes, int]] = {}
        self._xattrs: dict[int, int] = {}
        self._names: dict[tuple[int, bytes], tuple[int, int]] = {}
        self._unique = 0

    def _add(self, letter: str, data: bytes, line: str = "ok") -> None:
        self.commands.append((letter, data))
        self.expected.append(line)

    def put_attributes(self, ino: int, mark: int, until_ns: int, xattrs: int = XATTRS_UNKNOWN) -> None:
        self._attributes[ino] = attributes(mark), until_ns
        self._xattrs[ino] = xattrs
        self._add("A", struct.pack("<Qqq", ino, until_ns, xattrs) + attributes(mark))

    def put_name(self, parent: int, name: bytes, ino: int, until_ns: int) -> None:
        if 0 < len(name) <= NAME_MAX:
            self._names[parent, name] = ino, until_ns
        self._add("N", struct.pack("<QQq", parent, ino, until_ns) + name)

    def drop(self, ino: int) -> None:
        self._attributes.pop(ino, None)
        self._names = {key: value for key, value in self._names.items() if key[0] != ino}
        self._add("D", struct.pack("<Q", ino))

    def drop_name(self, parent: int, name: bytes) -> None:
        self._names.pop((parent, name), None)
        self._add("X", struct.pack("<Q", parent) + name)

    def drop_names(self) -> None:
        self._names.clear()
        self._add("V", b"")

    def message(self, opcode: int, ino: int, body: bytes, *, extensions: int = 0) -> bytes:
        self._unique += 1
        return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, self._unique, ino, 0, 0, 1, extensions, 0) + body

    def _request(self, now_ns: int, message: bytes, body: bytes | None, error: int = 0) -> None:
        answer = b"" if body is None else struct.pack("<IiQ", 16 + len(body), -error, self._unique) + body
        self.answered += body is not None
        self._add("R", struct.pack("<q", now_ns) + message, f"answer {answer.hex()}")

    def lookup(self, parent: int, name: bytes, now_ns: int) -> bytes | None:
        """The body of the answer, None if that is Python's."""
        body = self._found(parent, name, now_ns)
        self._request(now_ns, self.message(LOOKUP, parent, name + b"\0"), body)
        return body

    def _found(self, parent: int, name: bytes, now_ns: int) -> bytes | None:
        ino, until_ns = self._names.get((parent, name), (0, 0))
        if until_ns <= now_ns:
            return None
        known, good_ns = self._attributes.get(ino, (b"", 0)) if ino else (bytes(ATTRIBUTES_BYTES), now_ns)
        if ino and good_ns <= now_ns:
            return None
        (entry_s, entry_ns), (attr_s, attr_ns) = seconds(until_ns - now_ns), seconds(good_ns - now_ns)
        return struct.pack("<QQQQII", ino, 0, entry_s, attr_s, entry_ns, attr_ns) + known

    def getattr(self, ino: int, now_ns: int) -> bytes | None:
        known, until_ns = self._attributes.get(ino, (b"", 0))
        body = None if until_ns <= now_ns else struct.pack("<QI4x", *seconds(until_ns - now_ns)) + known
        self._request(now_ns, self.message(GETATTR, ino, bytes(16)), body)
        return body

    def getxattr(self, ino: int, name: bytes, now_ns: int) -> bool:
        """Whether it is known that there is none."""
        _, until_ns = self._attributes.get(ino, (b"", 0))
        xattrs = self._xattrs.get(ino, XATTRS_UNKNOWN)
        absent = until_ns > now_ns and can_be(name) and xattrs != XATTRS_UNKNOWN and not xattrs & XattrKind.of(name)
        message = self.message(GETXATTR, ino, struct.pack("<II", 100, 0) + name + b"\0")
        self._request(now_ns, message, b"" if absent else None, errno.ENODATA)
        return absent

    def listxattr(self, ino: int, room: int, now_ns: int) -> bool:
        """Likewise of any name."""
        _, until_ns = self._attributes.get(ino, (b"", 0))
        none = until_ns > now_ns and self._xattrs.get(ino) == 0
        answer = b"" if room else bytes(8)
        self._request(now_ns, self.message(LISTXATTR, ino, struct.pack("<II", room, 0)), answer if none else None)
        return none

    def raw(self, message: bytes) -> None:
        """One that has no answer."""
        self._request(0, message, None)

    def play(self, driver: Path, nodes_max: int = 1000, names_max: int = 1000) -> None:
        """With enough room: each line is as the model says."""
        lines = self._played(driver, nodes_max, names_max)
        for number, (line, wanted) in enumerate(zip(lines, self.expected, strict=False)):
            assert line == wanted, (number, self.commands[max(0, number - 5) : number + 1])
        assert lines[len(self.expected) :] == [f"answered {self.answered}"]

    def play_crowded(self, driver: Path, nodes_max: int, names_max: int) -> float:
        """With too little: what is answered is as the model says; the share of what could be answered that was."""
        lines = self._played(driver, nodes_max, names_max)
        for line, wanted in zip(lines, self.expected, strict=False):
            assert line in {wanted, "answer "} if wanted.startswith("answer") else line == wanted
        return int(lines[-1].split()[1]) / self.answered

    def _played(self, driver: Path, nodes_max: int, names_max: int) -> list[str]:
        stream = b"".join(letter.encode() + struct.pack("<I", len(data)) + data for letter, data in self.commands)
        done = subprocess.run([driver, str(nodes_max), str(names_max)], input=stream, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().splitlines()


def test_what_was_told_is_told_again_until_its_time(driver: Path) -> None:
    history = History()
    history.put_attributes(7, 1, 5 * NS)
    history.put_name(1, b"file", 7, 3 * NS)
    assert history.getattr(7, NS) is not None
    found = history.lookup(1, b"file", NS + 5)
    assert found is not None
    assert struct.unpack_from("<QQQQII", found) == (7, 0, 1, 3, NS - 5, NS - 5)
    assert history.lookup(1, b"file", 3 * NS) is None
    assert history.getattr(7, 5 * NS) is None
    history.play(driver)


def test_a_name_without_good_attributes_is_not_told(driver: Path) -> None:
    history = History()
    history.put_name(1, b"file", 7, 3 * NS)
    assert history.lookup(1, b"file", 0) is None
    history.put_attributes(7, 1, 2 * NS)
    assert history.lookup(1, b"file", 0) is not None
    assert history.lookup(1, b"file", 2 * NS) is None
    history.put_name(1, b"absent", 0, 3 * NS)
    assert history.lookup(1, b"absent", 2 * NS) is not None
    history.play(driver)


def test_what_is_dropped_is_told_no_more(driver: Path) -> None:
    history = History()
    for ino, name in ((7, b"a"), (8, b"b"), (9, b"c")):
        history.put_attributes(ino, ino, NS)
        history.put_name(1, name, ino, NS)
        history.put_name(2, name, ino, NS)
    history.drop(7)
    assert [history.lookup(1, name, 0) is None for name in (b"a", b"b", b"c")] == [True, False, False]
    history.drop_name(1, b"b")
    assert [history.lookup(1, name, 0) is None for name in (b"b", b"c")] == [True, False]
    history.drop(1)
    assert [history.lookup(parent, b"c", 0) is None for parent in (1, 2)] == [True, False]
    history.drop_names()
    assert history.lookup(2, b"c", 0) is None
    assert history.getattr(9, 0) is not None, "attributes stay"
    history.play(driver)


def test_attributes_that_are_not_there_are_known_by_their_kind(driver: Path) -> None:
    history = History()
    for kinds in (*XattrKind, 0, XATTRS_UNKNOWN):
        history.put_attributes(7, 1, NS, int(kinds))
        found = [history.getxattr(7, name, 0) for name in XATTRS]
        assert found == [kinds >= 0 and can_be(name) and not kinds & XattrKind.of(name) for name in XATTRS]
        assert not any(history.getxattr(7, name, NS) for name in XATTRS)
        assert [history.listxattr(7, room, 0) for room in (0, 100)] == [kinds == 0] * 2
    history.play(driver)


@pytest.mark.parametrize("opcode", [LOOKUP, GETATTR, OPEN, GETXATTR, LISTXATTR])
def test_truncated_and_odd_messages_have_no_answer(driver: Path, opcode: int) -> None:
    history = History()
    history.put_attributes(7, 1, NS)
    history.put_name(7, b"name", 7, NS)
    whole = history.message(opcode, 7, b"name\0")
    for length in range(len(whole)):
        history.raw(whole[:length])
    history.raw(history.message(opcode, 7, b"name\0", extensions=1))
    history.raw(history.message(LOOKUP, 7, b"name"))
    history.raw(history.message(LOOKUP, 7, b""))
    history.raw(history.message(LOOKUP, 7, b"\0"))
    history.play(driver)


def random_history(seed: int) -> History:
    chosen, history, now_ns = random.Random(seed), History(), 1
    inodes = range(1, 9)
    for _ in range(HISTORY):
        now_ns += chosen.randrange(3) * (NS // 50)
        one, ino, name, until_ns = chosen.random(), chosen.choice(inodes), chosen.choice(NAMES), now_ns + chosen.randrange(3 * NS)
        if one < 0.15:
            history.put_attributes(ino, chosen.randrange(256), until_ns, chosen.choice((0, XATTRS_UNKNOWN, *XattrKind)))
        elif one < 0.4:
            history.put_name(ino, name, chosen.choice((0, *inodes)), until_ns)
        elif one < 0.5:
            history.drop(ino)
        elif one < 0.55:
            history.drop_name(ino, name)
        elif one < 0.555:
            history.drop_names()
        elif one < 0.9:
            history.lookup(ino, name, now_ns)
        elif one < 0.95:
            history.getattr(ino, now_ns)
        elif one < 0.98:
            history.getxattr(ino, chosen.choice(XATTRS), now_ns)
        else:
            history.listxattr(ino, chosen.randrange(2), now_ns)
    assert history.answered > HISTORY / 20
    return history


@pytest.mark.parametrize("seed", [1, 2])
def test_random_histories_end_as_the_model_says(driver: Path, seed: int) -> None:
    history = random_history(seed)
    history.play(driver)
    for nodes_max, names_max in ((3, 100), (100, 4), (2, 2), (1, 1)):
        share = history.play_crowded(driver, nodes_max, names_max)
        assert 0.01 < share < 1.0 or (nodes_max, names_max) == (1, 1), (nodes_max, names_max, share)


def test_random_messages_do_no_harm(driver: Path) -> None:
    chosen, history = random.Random(3), History()
    for _ in range(50_000):
        opcode, body = (
            chosen.choice((LOOKUP, GETATTR, GETXATTR, LISTXATTR, chosen.randrange(64))),
            chosen.randbytes(chosen.randrange(64)),
        )
        history.raw(history.message(opcode, chosen.randrange(20), body))
        history.raw(chosen.randbytes(chosen.randrange(80)))
    history.play(driver)
