"""Files that are made durable together, on a file system of which only the disk's content is looked at afterwards."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent.objects.syncing import DIRTY_MAX_BYTES, FEW, dirty_bytes, sync_files
from tests.agent.disks import disk_in, flushes, power_fails

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")

COUNT = 40
ALWAYS, NEVER = 1 << 60, -1  # what may be dirty for them to be synced together


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disk_in(tmp_path) as place:
        yield place


@pytest.fixture
def written(disk: Path) -> Iterator[list[int]]:
    """Descriptors of new files with content, whose names are durable, and nothing else of them."""
    with ExitStack() as stack:
        files = [stack.enter_context((disk / f"f{number}").open("xb", buffering=0)) for number in range(COUNT)]
        os.sync()
        for number, file in enumerate(files):
            file.write(b"%d" % number * 1000)
        yield [file.fileno() for file in files]


@pytest.mark.parametrize("dirty_max_bytes", [ALWAYS, NEVER], ids=["together", "one by one"])
def test_what_was_synced_is_there_after_the_power_failed(disk: Path, written: list[int], dirty_max_bytes: int) -> None:
    assert sync_files(written, dirty_max_bytes=dirty_max_bytes) == [None] * COUNT
    after = power_fails(disk)
    assert [(after / f"f{number}").read_bytes() for number in range(COUNT)] == [b"%d" % number * 1000 for number in range(COUNT)]


def test_a_batch_costs_few_flushes_of_the_disk(disk: Path, written: list[int]) -> None:
    before = flushes(disk)
    sync_files(written, dirty_max_bytes=ALWAYS)
    assert flushes(disk) - before <= 4


def test_much_that_is_dirty_is_not_waited_for(written: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk afterwards would not tell: anybody's sync(2), in any container of this machine, writes all of it."""
    synced: list[int] = []

    def syncfs(descriptor: int) -> int:
        synced.append(descriptor)
        return 0

    monkeypatch.setattr("agent.objects.syncing._syncfs", syncfs)
    sync_files(written, dirty_max_bytes=NEVER)
    sync_files(written[:FEW], dirty_max_bytes=ALWAYS)
    assert synced == []
    sync_files(written, dirty_max_bytes=ALWAYS)
    assert synced == written[:1]


def test_what_went_wrong_with_one_is_said_of_that_one(written: list[int]) -> None:
    closed = os.dup(written[0])
    os.close(closed)
    errors = sync_files([closed, *written], dirty_max_bytes=ALWAYS)
    assert isinstance(errors[0], OSError)
    assert errors[1:] == [None] * COUNT


def test_dirty_pages_are_those_of_the_whole_machine(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemFree: 9 kB\nDirty:      100 kB\nWriteback:   20 kB\nWritebackTmp:   7 kB\n")
    assert dirty_bytes(tmp_path / "meminfo") == 120 * 1024
    assert 0 <= dirty_bytes() < 1 << 50
    assert DIRTY_MAX_BYTES > 0
