"""Opening what lies in an object's place: only a regular file, and nothing holds the thread."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.volume.cached_open import open_cached
from cluster.volume.layout import VolumeLayout
from cluster.volume.regular import open_regular
from tests.support.no_files import NO_FILES


@pytest.mark.timeout(20)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR], ids=["to read", "to write"])
@pytest.mark.parametrize("what", NO_FILES)
def test_something_else_is_refused_at_once(tmp_path: Path, what: str, flags: int) -> None:
    path = tmp_path / "object"
    NO_FILES[what](path)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="it is not a file") as told:
        open_regular(path, flags)
    assert told.value.errno == errno.EBADMSG
    # It says so, or leaves it to a thread, which will.
    with suppress(OSError):
        assert open_cached(os.fspath(path), flags) is None
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_file_is_opened_and_closed_by_exec(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(b"content")
    descriptor = open_regular(path, os.O_RDWR)
    try:
        assert os.pread(descriptor, 10, 0) == b"content"
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_what_is_missing_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "object", os.O_RDONLY)


def test_reading_sets_no_access_time(tmp_path: Path) -> None:
    """Which would wait for a disk that hangs, also where the kernel has the content."""
    layout = VolumeLayout(tmp_path)
    layout.objects.mkdir()
    made = layout.create_object(7)
    os.write(made, b"content")
    os.utime(made, ns=(0, 10**18))  # an access before the last change is what Linux sets by default
    opened = open_regular(layout.object_path(7), os.O_RDONLY)
    cached = open_cached(layout.object_path(7), os.O_RDONLY)
    for descriptor in (made, opened, *([] if cached is None else [cached])):
        assert os.pread(descriptor, 10, 0) == b"content"
        os.close(descriptor)
    assert os.stat(layout.object_path(7)).st_atime_ns == 0
