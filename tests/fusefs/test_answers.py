"""Answers that the mount writes itself, as the kernel reads them (include/uapi/linux/fuse.h)."""

import stat
import struct

from cluster.messages import Node
from fusefs import statx
from fusefs.caching import Seen

FILE = stat.S_IFREG | 0o640
NODE = Node(7, FILE, 0, 1000, 1001, 0, 5000, 16, 1_000_000_002, -1, 4_000_000_005, 3_000_000_004)
SEEN = Seen(NODE, entry_s=9.0, attr_s=2.25)


def test_statx() -> None:
    answer = statx.encode(SEEN)
    assert len(answer) == 288
    assert struct.unpack_from("<QI", answer) == (2, 250_000_000)
    assert struct.unpack_from("<IIQIIIH2xQQQ", answer, 32) == (0xFFF, 131_072, 0, 0, 1000, 1001, FILE, 7, 5000, 16)
    times = [struct.unpack_from("<qI", answer, 96 + 16 * number) for number in range(4)]
    assert times == [(1, 2), (3, 4), (4, 5), (-1, 999_999_999)], "access, birth, change, modification"
