"""Answers that the mount writes itself, as the kernel reads them (include/uapi/linux/fuse.h)."""

import errno
import stat
import struct

import pytest

from cluster.errors import Refused
from cluster.messages import Node
from fusefs.caching.cache import EntryReply
from fusefs.kernel import replies
from fusefs.kernel.stream import OpenFlag

FILE = stat.S_IFREG | 0o640
NODE = Node(7, FILE, 0, 1000, 1001, 0, 5000, 16, 1_000_000_002, -1, 4_000_000_005, 3_000_000_004)
SEEN = EntryReply(NODE, entry_s=9.0, attr_s=2.25)


def check_attributes(answer: bytes) -> None:
    assert len(answer) == 88
    assert struct.unpack_from("<QQQqqqIII", answer) == (7, 5000, 16, 1, -1, 4, 2, 999_999_999, 5)
    assert struct.unpack_from("<IIIIIII", answer, 60) == (FILE, 0, 1000, 1001, 0, 131_072, 0)


def test_statx() -> None:
    answer = replies.statx(SEEN)
    assert len(answer) == 288
    assert struct.unpack_from("<QI", answer) == (2, 250_000_000)
    assert struct.unpack_from("<IIQIIIH2xQQQ", answer, 32) == (0xFFF, 131_072, 0, 0, 1000, 1001, FILE, 7, 5000, 16)
    times = [struct.unpack_from("<qI", answer, 96 + 16 * number) for number in range(4)]
    assert times == [(1, 2), (3, 4), (4, 5), (-1, 999_999_999)], "access, birth, change, modification"


def test_a_name() -> None:
    answer = replies.entry(SEEN)
    assert struct.unpack_from("<QQQQII", answer) == (7, 0, 9, 2, 0, 250_000_000)
    check_attributes(answer[40:])


def test_a_name_that_does_not_exist() -> None:
    absent = replies.entry(EntryReply(None, entry_s=1.5))
    assert absent == struct.pack("<QQQQII", 0, 0, 1, 0, 500_000_000, 0) + bytes(88)
    with pytest.raises(Refused) as refusal:
        replies.entry(EntryReply(None))
    assert refusal.value.errno == errno.ENOENT


def test_attributes() -> None:
    answer = replies.attributes(SEEN)
    assert struct.unpack_from("<QI", answer) == (2, 250_000_000)
    check_attributes(answer[16:])


def test_all_directories_look_alike() -> None:
    directory = EntryReply(Node(8, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 77, 1, 0, 0, 0, 0))
    assert struct.unpack_from("<QQQ", replies.attributes(directory), 16) == (8, 4096, 8)
    assert struct.unpack_from("<QQQ", replies.statx(directory), 64) == (8, 4096, 8)


def test_a_handle() -> None:
    assert replies.opened(5, OpenFlag.PASSTHROUGH, 3) == struct.pack("<QII", 5, OpenFlag.PASSTHROUGH, 3)
    assert replies.opened(6, OpenFlag(0)) == struct.pack("<QII", 6, 0, 0)
