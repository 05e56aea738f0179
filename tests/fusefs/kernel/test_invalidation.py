"""Whether the kernel forgets names that it was told to be absent, with a kernel in memory."""

import os
from pathlib import Path
from typing import cast

import pytest

from cluster.messages import ROOT_INO
from fusefs.kernel.invalidation import TRIES, KernelCache
from fusefs.kernel.stream import Channel


class Kernel:
    """A channel, and the absent names behind it; a name that *forgets_by_itself* is gone before it is asked for."""

    device = 1

    def __init__(self, *, drops: bool = True, forgets_by_itself: int = 0) -> None:
        self.told: set[bytes] = set()
        self._drops = drops
        self._forgets = forgets_by_itself
        self.asked = 0

    def put_name(self, parent: int, name: bytes, ino: int, _until_ns: int) -> None:
        assert (parent, ino) == (ROOT_INO, 0)
        self.told.add(name)

    def drop_name(self, _parent: int, name: bytes) -> None:
        self.told.discard(name)

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        assert parent == ROOT_INO
        assert name in self.told
        self.asked += 1
        if not self._drops or self.asked <= self._forgets:
            raise FileNotFoundError(os.fsdecode(name))


def tried(kernel: Kernel, folder: Path) -> bool:
    cache = KernelCache(cast(Channel, kernel), kernel.invalidate_entry)
    assert not cache.drops_absent_names, "nobody knows"
    cache.try_absent_names(str(folder))
    assert kernel.told == set(), "the name of the trial is told no more"
    return cache.drops_absent_names


def test_a_kernel_that_drops_them_is_believed(tmp_path: Path) -> None:
    kernel = Kernel()
    assert tried(kernel, tmp_path)
    assert kernel.asked == 1


@pytest.mark.parametrize("forgets_by_itself", range(1, TRIES))
def test_a_name_that_went_for_lack_of_memory_is_tried_again(tmp_path: Path, forgets_by_itself: int) -> None:
    assert tried(Kernel(forgets_by_itself=forgets_by_itself), tmp_path)


def test_one_that_keeps_them_is_not(tmp_path: Path) -> None:
    kernel = Kernel(drops=False)
    assert not tried(kernel, tmp_path)
    assert kernel.asked == TRIES
