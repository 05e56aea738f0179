"""The extension's delegated opens beside a model, under AddressSanitizer: right histories, truncated messages, random ones."""

import os
import random
import struct
import subprocess
from pathlib import Path

import pytest

from fusefs.kernel.stream import Delegation, OpenFlag
from tests.fusefs.delegating import FIRST, Model
from tests.fusefs.kernel.drivers import built

OPEN, RELEASE, READ = 14, 18, 15
FLOCK_UNLOCK = 2
INODES_MAX, OPENS_MAX = 12, 20
HISTORY = 500_000  # commands
FLAGS = (os.O_RDONLY, os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK, os.O_RDWR, os.O_TRUNC, os.O_DIRECT, os.O_APPEND, os.O_SYNC)
JUST_READING = FLAGS[:2]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("delegations"), "delegations")


class History:
    """Commands for the driver, and what the model says to each."""

    def __init__(self) -> None:
        self.model = Model(INODES_MAX, OPENS_MAX)
        self.commands: list[tuple[str, bytes]] = []
        self.expected: list[str] = []
        self._unique = 0

    def _add(self, letter: str, data: bytes, line: str) -> None:
        self.commands.append((letter, data))
        self.expected.append(line)

    def delegate(self, ino: int, answer: Delegation) -> None:
        """The driver takes the object's size for what the descriptor says: another one has changed."""
        packed = struct.pack(
            "<QqqqiII4x", ino, answer.until_ns, answer.size, answer.ctime_ns, answer.descriptor, answer.flags, answer.backing_id
        )
        self._add("D", packed, "ok" if self.model.delegate(ino, answer) else "no")

    def suspend(self, ino: int) -> None:
        self.model.suspend(ino)
        self._add("S", struct.pack("<Q", ino), "ok")

    def take_back(self, ino: int) -> None:
        known = self.model.knows(ino)
        handles = "".join(f" {handle}" for handle in self.model.take_back(ino))
        self._add("T", struct.pack("<Q", ino), f"handles{handles} {'ended' if known else 'none'}")

    def inode_of(self, handle: int) -> None:
        self._add("I", struct.pack("<Q", handle), f"inode {self.model.delegated_inode(handle)}")

    def used(self) -> None:
        self._add("U", b"", " ".join(["used", *map(str, self.model.used_inodes())]))

    def message(self, opcode: int, ino: int, body: bytes) -> bytes:
        self._unique += 1
        return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, self._unique, ino, 0, 0, 1, 0, 0) + body

    def open(self, ino: int, now_ns: int, flags: int = os.O_RDONLY, open_flags: int = 0, *, taken: bool = True) -> int:
        """The handle, 0 if it is Python's."""
        message = self.message(OPEN, ino, struct.pack("<II", flags, open_flags))
        opened = self.model.open(
            ino, now_ns, is_unchanged=self.model.is_unchanged(ino), reads=flags in JUST_READING and not open_flags
        )
        answer = "" if opened is None else struct.pack("<IiQQII", 32, 0, self._unique, *opened).hex()
        self._add("R" if taken else "X", struct.pack("<q", now_ns) + message, f"answer {answer}")
        if opened is None:
            return 0
        if not taken:
            self.model.undo(opened[0])
        return opened[0]

    def release(self, handle: int, flags: int = 0) -> None:
        message = self.message(RELEASE, 7, struct.pack("<QIIQ", handle, 0, flags, 0))
        released = not flags and self.model.release(handle)
        answer = struct.pack("<IiQ", 16, 0, self._unique).hex() if released else ""
        self._add("R", struct.pack("<q", 0) + message, f"answer {answer}")

    def raw(self, message: bytes) -> None:
        """One that is nobody's: it has no answer."""
        self._add("R", struct.pack("<q", 0) + message, "answer ")

    def play(self, driver: Path) -> None:
        stream = b"".join(letter.encode() + struct.pack("<I", len(data)) + data for letter, data in self.commands)
        done = subprocess.run([driver, str(INODES_MAX), str(OPENS_MAX)], input=stream, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        lines = done.stdout.decode().splitlines()
        for number, (line, wanted) in enumerate(zip(lines, self.expected, strict=False)):
            assert line == wanted, (number, self.commands[max(0, number - 5) : number + 1])
        assert lines[len(self.expected) :] == [f"answered {self.model.opened}"]


def answer(*, until_ns: int = 100, is_unchanged: bool | None = True, size: int = 10) -> Delegation:
    """*is_unchanged* None: nobody looks."""
    descriptor = -1 if is_unchanged is None else size if is_unchanged else size + 1
    flags = OpenFlag.KEEP_CACHE if is_unchanged is None else OpenFlag.PASSTHROUGH
    return Delegation(descriptor, flags, 0 if is_unchanged is None else 3, size, 5, until_ns)


def test_what_is_delegated_is_opened_and_closed_until_it_is_taken_back(driver: Path) -> None:
    history = History()
    history.delegate(7, answer())
    first, second = history.open(7, 0), history.open(7, 99)
    assert (first, second) == (FIRST, FIRST + 1)
    assert history.open(8, 0) == 0, "nobody has delegated it"
    assert history.open(7, 100) == 0, "it is over"
    history.release(first)
    history.take_back(7)
    assert history.expected[-1] == f"handles {second} ended"
    history.release(second)
    assert history.expected[-1] == "answer ", "Python's by now"
    assert history.open(7, 0) == 0
    history.take_back(7)
    assert history.expected[-1] == "handles none"
    history.play(driver)


@pytest.mark.parametrize("flags", FLAGS)
def test_only_an_open_that_just_reads_is_answered(driver: Path, flags: int) -> None:
    history = History()
    history.delegate(7, answer())
    assert (history.open(7, 0, flags) != 0) is (flags in JUST_READING)
    assert history.open(7, 0, os.O_RDONLY, 1) == 0, "with a flag of the kernel's own"
    history.play(driver)


def test_an_object_that_was_changed_is_not_opened_until_it_is_delegated_anew(driver: Path) -> None:
    history = History()
    history.delegate(7, answer(is_unchanged=False))
    assert history.open(7, 0) == 0
    history.delegate(7, answer())
    assert history.open(7, 0) != 0
    history.delegate(7, answer(is_unchanged=None))
    assert history.open(7, 0) != 0
    history.suspend(7)
    assert history.open(7, 0) == 0
    history.play(driver)


def test_what_is_locked_by_flock_is_closed_by_python(driver: Path) -> None:
    history = History()
    history.delegate(7, answer())
    handle = history.open(7, 0)
    history.release(handle, FLOCK_UNLOCK)
    history.inode_of(handle)
    assert history.expected[-1] == "inode 7"
    history.play(driver)


def test_what_the_kernel_did_not_take_is_not_open(driver: Path) -> None:
    history = History()
    history.delegate(7, answer())
    history.open(7, 0, taken=False)
    history.take_back(7)
    assert history.expected[-1] == "handles ended"
    history.play(driver)


@pytest.mark.parametrize("opcode", [OPEN, RELEASE, READ])
def test_truncated_messages_have_no_answer(driver: Path, opcode: int) -> None:
    history = History()
    history.delegate(7, answer())
    whole = history.message(opcode, 7, struct.pack("<QIIQ", FIRST, 0, 0, 0))
    for length in range(len(whole)):
        history.raw(whole[:length])
        if length >= 4:
            # With a length that says so, and a body that is too short.
            body_bytes = max(0, length - 40)
            if length < 40 or opcode == READ or body_bytes < (8 if opcode == OPEN else 24):
                history.raw(struct.pack("<I", length) + whole[4:length])
    history.play(driver)


@pytest.mark.parametrize("seed", [1, 2])
def test_random_histories_end_as_the_model_says(driver: Path, seed: int) -> None:
    chosen, history = random.Random(seed), History()
    inodes, handles, now_ns = range(INODES_MAX + 4), [0, FIRST, 1 << 63], 1
    for _ in range(HISTORY):
        now_ns += chosen.random() < 0.2
        one = chosen.random()
        if one < 0.4:
            flags, kernel_flags = chosen.choice((os.O_RDONLY,) * 5 + FLAGS), int(chosen.random() < 0.02)
            handles.append(history.open(chosen.choice(inodes), now_ns, flags, kernel_flags, taken=chosen.random() < 0.95))
        elif one < 0.75:
            history.release(chosen.choice(handles[-40:]), FLOCK_UNLOCK * (chosen.random() < 0.02))
        elif one < 0.88:
            until_ns, is_unchanged = now_ns + chosen.randrange(200), chosen.choice((True,) * 8 + (False, None))
            history.delegate(chosen.choice(inodes[1:]), answer(until_ns=until_ns, is_unchanged=is_unchanged))
        elif one < 0.92:
            history.take_back(chosen.choice(inodes))
        elif one < 0.95:
            history.suspend(chosen.choice(inodes))
        elif one < 0.98:
            history.inode_of(chosen.choice(handles[-40:]))
        else:
            history.used()
    assert history.model.opened > HISTORY / 20
    history.play(driver)


def test_random_messages_do_no_harm(driver: Path) -> None:
    chosen, history = random.Random(3), History()
    for _ in range(50_000):
        opcode, body = chosen.choice((OPEN, RELEASE, chosen.randrange(64))), chosen.randbytes(chosen.randrange(64))
        history.raw(history.message(opcode, chosen.randrange(20), body))
        history.raw(chosen.randbytes(chosen.randrange(80)))
    history.play(driver)
