"""The fence on real files: what it forbids, who gets past it, and that it stays whatever happens to the name."""

import errno
import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cluster.volume.fence import despite_fence, fence, is_fenced, is_writable, lift, open_object_at, stops_writers

CHANGES: list[Callable[[int], object]] = [
    lambda descriptor: os.pwrite(descriptor, b"late", 0),
    lambda descriptor: os.ftruncate(descriptor, 0),
    lambda descriptor: os.utime(descriptor, ns=(1, 1)),
    lambda descriptor: os.setxattr(descriptor, "user.godwit", b"{}"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "object"
    made.write_bytes(b"content")
    descriptor = os.open(made, os.O_RDONLY)
    supported = fence(descriptor)
    lift(descriptor)
    os.close(descriptor)
    assert supported
    assert stops_writers(str(tmp_path)), "the tests' directory must be on ext4"
    return made


@pytest.mark.parametrize("change", CHANGES)
def test_a_descriptor_that_was_open_before_cannot_change_a_fenced_object(path: Path, change: Callable[[int], object]) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert is_writable(descriptor)
        assert fence(descriptor)
        assert fence(descriptor), "fencing again is harmless"
        assert is_fenced(descriptor)
        assert not is_writable(descriptor)
        with pytest.raises(PermissionError):
            change(descriptor)
        assert path.read_bytes() == b"content"
        lift(descriptor)
        lift(descriptor)
        change(descriptor)
    finally:
        os.close(descriptor)


def test_who_may_not_write_gets_a_descriptor_to_read_and_who_may_lifts(path: Path) -> None:
    old = os.open(path, os.O_RDWR)
    fence(old)
    reading = open_object_at(str(path), lifting=False)
    try:
        assert os.pread(reading, 7, 0) == b"content"
        assert not is_writable(reading)
        assert is_fenced(old)
        writing = open_object_at(str(path), lifting=True)
        assert os.pwrite(writing, b"C", 0) == 1
        assert not is_fenced(old)
        assert not is_writable(reading), "it was opened for reading"
        os.close(writing)
    finally:
        os.close(reading)
        os.close(old)


@pytest.mark.parametrize("how", ["replaced", "renamed", "unlinked"])
def test_an_object_stays_fenced_when_its_name_goes(path: Path, how: str) -> None:
    other = path.with_name("other")
    old = os.open(path, os.O_RDWR)
    try:
        fence(old)
        if how == "replaced":
            other.write_bytes(b"newer")
            despite_fence(str(path), partial(os.rename, other, path))
            assert path.read_bytes() == b"newer"
            path.write_bytes(b"newest")
        elif how == "renamed":
            despite_fence(str(path), partial(os.rename, path, other))
            assert not path.exists()
        else:
            despite_fence(str(path), partial(os.unlink, path))
            assert not path.exists()
        with pytest.raises(PermissionError):
            os.pwrite(old, b"lost", 0)
    finally:
        os.close(old)


def test_what_fails_for_another_reason_fails(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        despite_fence(str(path), partial(os.rename, path.with_name("missing"), path))
    with pytest.raises(OSError, match="Directory not empty"):
        despite_fence(str(path), partial(os.rename, path, path.parent))


def test_what_cannot_be_tried_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stops_writers(str(tmp_path / "away")) is None
    assert stops_writers("/proc") is False, "it has no nameless files"

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "a bad disk")

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "ioctl", fail)
        assert stops_writers(str(tmp_path)) is None
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fail)
        assert stops_writers(str(tmp_path)) is False, "the flag was not looked at before"
    assert stops_writers(str(tmp_path)) is True
