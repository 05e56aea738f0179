"""Files in `staging/`: holes, and what goes around the page cache."""

import errno
import fcntl
import mmap
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.objects.staging import BLOCK_BYTES, HOLE_BYTES, StagedFile, runs_of_data
from cluster.volume.layout import ObjectRecord
from tests.agent.network import make_volume


@given(
    blocks=st.lists(st.sampled_from([b"\0" * HOLE_BYTES, b"x" * HOLE_BYTES, b"\0" * (HOLE_BYTES - 1) + b"y"]), max_size=6),
    tail=st.binary(max_size=100),
    offset=st.integers(min_value=0, max_value=3 * HOLE_BYTES),
)
def test_only_aligned_zeros_are_left_out(blocks: list[bytes], tail: bytes, offset: int) -> None:
    data = b"".join(blocks) + tail
    runs = runs_of_data(data, offset)
    rebuilt = bytearray(len(data))
    for start, end in runs:
        assert start < end
        rebuilt[start:end] = data[start:end]
    assert bytes(rebuilt) == data
    assert all(before[1] < after[0] for before, after in pairwise(runs))
    if offset % HOLE_BYTES == 0 and not tail:
        assert sum(end - start for start, end in runs) == sum(len(block) for block in blocks if any(block))


def test_a_staged_file_of_odd_chunks_is_what_was_appended(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    staged = StagedFile(volume, 7)
    parts = [b"a" * 100, bytes(200_000), b"b" * 70_001, bytes(1 << 20), bytes(5)]
    for part in parts:
        staged.append(part)
    staged.complete(ObjectRecord(ino=7, version=1, home_epoch=1, mtime_ns=10**18))
    content = Path(staged.path).read_bytes()
    assert content == b"".join(parts)
    assert os.stat(staged.path).st_blocks * 512 < len(content) - (1 << 20) + 2 * HOLE_BYTES
    staged.discard()
    assert list(volume.layout.staging.iterdir()) == []
    volume.close()


def in_pages(content: bytes) -> memoryview:
    """In memory of its own pages, as what is received is."""
    buffer = mmap.mmap(-1, len(content))
    buffer.write(content)
    return memoryview(buffer)


def is_direct(staged: StagedFile) -> bool:
    return bool(fcntl.fcntl(staged.descriptor, fcntl.F_GETFL) & os.O_DIRECT)


LONG = [os.urandom(1 << 20), b"a" * HOLE_BYTES + bytes(3 * HOLE_BYTES), os.urandom(BLOCK_BYTES), os.urandom(2 * BLOCK_BYTES + 7)]


def test_what_is_long_goes_around_the_page_cache_but_for_its_end(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    staged = StagedFile(volume, 7, direct=True)
    for part in LONG:
        assert is_direct(staged)
        staged.append(in_pages(part))
    assert not is_direct(staged)
    staged.complete(ObjectRecord(ino=7, version=1, home_epoch=1, mtime_ns=10**18))
    assert Path(staged.path).read_bytes() == b"".join(LONG)
    assert os.stat(staged.path).st_blocks * 512 < sum(map(len, LONG)) - 2 * HOLE_BYTES
    staged.discard()
    volume.close()


@pytest.mark.parametrize("broken", ["fcntl.fcntl", "os.pwrite"])
def test_a_file_system_that_cannot_do_without_the_page_cache_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    module, name = broken.split(".")
    works = getattr({"fcntl": fcntl, "os": os}[module], name)

    def refuse(descriptor: int, *arguments: Any) -> Any:
        if arguments == (fcntl.F_SETFL, os.O_DIRECT) or (name == "pwrite" and is_direct(staged)):
            raise OSError(errno.EINVAL, "Invalid argument")
        return works(descriptor, *arguments)

    volume = make_volume(tmp_path)
    if name == "fcntl":
        monkeypatch.setattr(broken, refuse)
    staged = StagedFile(volume, 7, direct=True)
    monkeypatch.setattr(broken, refuse)
    for part in LONG:
        staged.append(in_pages(part))
    assert not is_direct(staged)
    assert Path(staged.path).read_bytes() == b"".join(LONG)
    staged.discard()
    volume.close()


def test_a_disk_that_is_full_is_no_reason_to_use_the_page_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_descriptor: int, _data: memoryview, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    volume = make_volume(tmp_path)
    staged = StagedFile(volume, 7, direct=True)
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", fill)
        with pytest.raises(OSError, match="No space"):
            staged.append(in_pages(LONG[0]))
    assert is_direct(staged)
    staged.discard()
    volume.close()
