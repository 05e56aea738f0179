"""Objects are read without their holes, and have the digest of all their bytes."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from agent.objects.blocks import BlockSums
from agent.objects.reading import CHUNK_BYTES, HOLE_MAX_BYTES, Altered, ObjectReader, digest_of, verify_object
from cluster.messages import SUM_BLOCK_BYTES
from tests.agent.network import stamp_at

BLOCK = 4096
Parts = list[tuple[int, bytes]]
LAYOUTS: dict[str, tuple[int, Parts]] = {
    "nothing but a hole": (5 * CHUNK_BYTES + 7, []),
    "a very long hole": (2 * HOLE_MAX_BYTES + 5 * CHUNK_BYTES + 7, [(0, b"x")]),
    "no hole": (2 * CHUNK_BYTES + 7, [(0, os.urandom(2 * CHUNK_BYTES + 7))]),
    "a short hole": (2 * CHUNK_BYTES, [(0, b"x" * CHUNK_BYTES), (2 * CHUNK_BYTES - BLOCK, b"y" * BLOCK)]),
    "ends": (6 * CHUNK_BYTES + 9, [(0, b"a"), (6 * CHUNK_BYTES, b"b" * 9)]),
    "odd places": (9 * CHUNK_BYTES, [(3 * CHUNK_BYTES + 5 * BLOCK + 1, b"c" * 70_000), (7 * CHUNK_BYTES - 1, b"dd")]),
}


@pytest.fixture(params=LAYOUTS.values(), ids=list(LAYOUTS))
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    size, parts = request.param
    made = tmp_path / "object"
    with made.open("wb") as file:
        file.truncate(size)
        for offset, part in parts:
            os.pwrite(file.fileno(), part, offset)
    yield made
    made.unlink()


def reader_of(path: Path, ranges: list[tuple[int, int]] | None = None) -> "closing[ObjectReader]":
    return closing(ObjectReader(str(path), stamp_at(str(path)), ranges=ranges or []))


def read_with_holes(reader: ObjectReader) -> tuple[bytes, int]:
    """All that it gives, and how much of that were holes."""
    content, skipped = b"", 0
    while not reader.finished:
        hole = reader.skip_hole()
        assert hole <= HOLE_MAX_BYTES
        skipped += hole
        content += bytes(hole) if hole else bytes(reader.read())
    return content, skipped


def test_what_is_read_with_its_holes_is_the_whole(path: Path) -> None:
    content = path.read_bytes()
    with reader_of(path) as reader:
        read, skipped = read_with_holes(reader)
        assert read == content
        assert reader.digest() == blake3(content).digest()
    assert len(content) - skipped <= os.stat(path).st_blocks * 512 + 4 * CHUNK_BYTES
    with path.open("rb") as file:
        assert digest_of(file.fileno()) == blake3(content).digest()
    assert verify_object(str(path)).checksum == blake3(content).digest()


def test_parts_are_read_with_their_holes(path: Path) -> None:
    content, draw = path.read_bytes(), random.Random(1)
    for _ in range(20):
        ends = sorted(draw.sample(range(len(content) + 1), 6))
        ranges = [(start, end - start) for start, end in zip(ends[::2], ends[1::2], strict=True)]
        with reader_of(path, ranges) as reader:
            assert read_with_holes(reader)[0] == b"".join(content[start : start + length] for start, length in ranges)


def test_blocks_have_the_same_digests_with_holes(path: Path) -> None:
    content = path.read_bytes()
    with reader_of(path) as reader:
        sums = BlockSums(reader)
        found = b"".join(iter(sums.next_body, None))
        assert reader.digest() == blake3(content).digest()
    blocks = (content[start : start + SUM_BLOCK_BYTES] for start in range(0, len(content), SUM_BLOCK_BYTES))
    assert found == b"".join(blake3(block).digest() for block in blocks)


CHANGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, CHUNK_BYTES),
    "written": lambda path: path.write_bytes(b"x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_hole_of_what_has_changed_counts_for_nothing(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "object"
    with path.open("wb") as file:
        file.truncate(3 * CHUNK_BYTES)
    with reader_of(path) as reader:
        change(path)
        with pytest.raises(Altered):
            read_with_holes(reader)
