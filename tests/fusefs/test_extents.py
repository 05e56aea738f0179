"""What the mount makes of requests for extents, without a kernel: pieces, interruptions, objects on its own disk."""

import errno
import os
from pathlib import Path

import pytest
import trio

from cluster.errors import GodwitError, Refused, Unavailable
from cluster.rpc.session import ManagerSession
from cluster.volume.extents import COPY_MAX_BYTES
from cluster.volume.layout import VolumeLayout
from fusefs.content.local_object import LocalObject
from fusefs.content.reading import all_data
from fusefs.handlers.extents import copy_all
from tests.support.trust import credentials

BLOCK = 4096
KEEP_SIZE, PUNCH_HOLE = 0x01, 0x02


class Copying:
    """Copies from a source of `size` bytes in pieces of at most 10; notes where."""

    def __init__(self, size: int, *, fails_at: int = -1, cancels_at: int = -1) -> None:
        self.size = size
        self.pieces: list[tuple[int, int]] = []
        self.scope = trio.CancelScope()
        self._fails_at = fails_at
        self._cancels_at = cancels_at

    async def copy(self, start: int, offset: int, length: int) -> int:
        assert length > 0
        if start == self._fails_at:
            raise Unavailable("away")
        if start == self._cancels_at:
            self.scope.cancel()
        await trio.lowlevel.checkpoint()
        self.pieces.append((start, offset))
        return max(0, min(length, 10, self.size - start))

    def run(self, start: int, offset: int, length: int) -> int | None:
        """What the whole copy gives; None if it was interrupted."""

        async def main() -> int | None:
            with self.scope:
                return await copy_all(self.copy, start, offset, length)
            return None

        return trio.run(main)


@pytest.mark.parametrize(
    ("copying", "asked", "copied", "pieces"),
    [
        (Copying(100), (0, 5, 25), 25, [(0, 5), (10, 15), (20, 25)]),
        (Copying(15), (0, 0, 25), 15, [(0, 0), (10, 10), (15, 15)]),
        (Copying(15), (20, 0, 25), 0, [(20, 0)]),
        (Copying(100), (0, 0, 0), 0, []),
        (Copying(100, fails_at=20), (0, 0, 50), 20, [(0, 0), (10, 10)]),
        (Copying(100, cancels_at=10), (0, 0, 50), 20, [(0, 0), (10, 10)]),
        (Copying(100, cancels_at=0), (0, 0, 50), 10, [(0, 0)]),
    ],
    ids=["whole", "to the end", "behind the end", "nothing", "fails later", "interrupted", "interrupted at once"],
)
def test_pieces(copying: Copying, asked: tuple[int, int, int], copied: int, pieces: list[tuple[int, int]]) -> None:
    assert copying.run(*asked) == copied
    assert copying.pieces == pieces


def test_a_copy_that_fails_at_once_fails() -> None:
    with pytest.raises(Unavailable):
        Copying(100, fails_at=0).run(0, 0, 50)


def test_a_file_without_known_holes_is_one_piece_of_data() -> None:
    assert [all_data(10, 3, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE)] == [3, 10]
    assert [all_data(10, 10, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE)] == [None, None]


@pytest.fixture
def volume(tmp_path: Path) -> VolumeLayout:
    layout = VolumeLayout(tmp_path / "volume")
    layout.format("test", "s1")
    return layout


async def created(volume: VolumeLayout, ino: int) -> LocalObject:
    session = ManagerSession(managers=[], credentials=credentials("s1", "mount"))
    return await LocalObject.create(os.fspath(volume.root), ino, session, 1.0, impatient=True)


async def test_an_object_here_is_allocated_punched_and_copied_from(volume: VolumeLayout) -> None:
    one, two = await created(volume, 1), await created(volume, 2)
    await one.write(0, b"x" * 3 * BLOCK, append=False)
    await one.allocate(0, 0, 4 * BLOCK)
    await one.allocate(PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
    content = b"x" * BLOCK + bytes(BLOCK) + b"x" * BLOCK + bytes(BLOCK)
    assert await one.read(0, 10 * BLOCK) == content
    assert [await one.seek(BLOCK, os.SEEK_DATA), await one.seek(0, os.SEEK_HOLE)] == [2 * BLOCK, BLOCK]
    assert await one.seek(4 * BLOCK, os.SEEK_DATA) is None
    assert await two.copy_from(one, BLOCK, 10, COPY_MAX_BYTES) == 3 * BLOCK
    assert await two.read(0, 10 * BLOCK) == bytes(10) + content[BLOCK:]
    assert await two.copy_from(two, 0, 3 * BLOCK + 10, 10) == 10
    one.close()
    with pytest.raises(Refused) as refusal:
        await two.copy_from(one, 0, 0, 10)
    assert refusal.value.errno == errno.EXDEV
    two.close()


@pytest.mark.parametrize(
    ("mode", "offset", "length", "expected"),
    [(0, 0, 0, errno.EINVAL), (0x1000, 0, 1, errno.EOPNOTSUPP), (PUNCH_HOLE, 0, 1, errno.EOPNOTSUPP), (0, 2**62, 1, errno.EFBIG)],
)
async def test_the_file_system_says_what_it_cannot_do(
    volume: VolumeLayout, mode: int, offset: int, length: int, expected: int
) -> None:
    one = await created(volume, 1)
    with pytest.raises(GodwitError) as refusal:
        await one.allocate(mode, offset, length)
    assert refusal.value.errno == expected
    one.close()
