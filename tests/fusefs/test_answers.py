"""Answers that the mount writes itself, as the kernel reads them (include/uapi/linux/fuse.h)."""

import stat
import struct

from cluster.messages import Node
from fusefs import statx, unnamed
from fusefs.caching import Seen
from fusefs.channel import OpenFlag
from fusefs.files import ToldKernel
from fusefs.openfiles import Way

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


def test_a_new_file_without_a_name() -> None:
    answer = unnamed.entry(SEEN)
    assert len(answer) == 128
    assert struct.unpack_from("<QQQQII", answer) == (7, 0, 0, 2, 0, 250_000_000), "the name is not to be kept"
    assert struct.unpack_from("<QQQqqqIII", answer, 40) == (7, 5000, 16, 1, -1, 4, 2, 999_999_999, 5)
    assert struct.unpack_from("<IIIIIII", answer, 100) == (FILE, 0, 1000, 1001, 0, 131_072, 0)


def test_how_the_kernel_reads_and_writes_it() -> None:
    def flags(way: Way, backing_id: int = 0) -> tuple[int, ...]:
        answer = unnamed.opened(ToldKernel(5, way, keep_pages=False, backing_id=backing_id))
        handle, *rest = struct.unpack("<QII", answer)
        assert handle == 5
        return tuple(rest)

    assert flags(Way.PASSED, 3) == (OpenFlag.PASSTHROUGH, 3)
    assert flags(Way.DIRECT) == (OpenFlag.DIRECT_IO, 0)
    assert flags(Way.CACHED) == (0, 0)
