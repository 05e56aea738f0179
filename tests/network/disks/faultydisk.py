"""Disks for tests that fail, hang or go away when they are told to: ext4 on a loop device on `faultydisk.c`."""

import fcntl
import os
import shlex
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.lab import Lab

SOURCE = Path(__file__).with_name("faultydisk.c")
READY_S = 20.0
FIEMAP, LAST = 0xC020660B, 0x1  # of linux/fiemap.h
_MAP, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQQQIIII")


def compiled(folder: Path) -> Path:
    """The program; skips the test where it cannot be made."""
    program = folder / "faultydisk"
    try:
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True).stdout
        subprocess.run(["cc", "-O1", "-o", program, SOURCE, *shlex.split(flags), "-lpthread"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk that fails can be made here: {error}")
    return program


REMOUNT_S = 20.0


class FaultyDisk:
    """One disk, mounted at *at* from the beginning. Without a journal, ext4 goes on after an error."""

    def __init__(self, folder: Path, at: Path, mib: int = 256, *, journal: bool = True) -> None:
        self.at = at
        self._folder = folder / "disk"
        self._folder.mkdir(parents=True)
        program, image = compiled(folder), folder / "image"
        self._process = subprocess.Popen([program, image, str(mib << 20), self._folder], start_new_session=True)
        self._loop = ""
        try:
            self._wait_for(self._folder / "ctl")
            self._loop = _output("losetup", "-f", "--show", str(self._folder / "disk"))
            features = "has_journal" if journal else "^has_journal"
            _do("mkfs.ext4", "-q", "-O", features, "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", self._loop)
            at.mkdir(parents=True, exist_ok=True)
            self.mount()
            (at / "lost+found").rmdir()
        except BaseException:
            self.end()
            raise

    def _wait_for(self, path: Path) -> None:
        deadline = time.monotonic() + READY_S
        while not path.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.skip("the disk that fails did not start")
            time.sleep(0.02)

    def say(self, mode: str) -> None:
        """`ok`, `eio`, `refuse` (writes fail), `hang` or `slow` (a fifth of a second for each request; with a
        number, so many milliseconds).

        Or of the bytes that follow: `bad FROM TO` (reading them fails) or `lose FROM TO` (writing them comes to nothing).
        """
        (self._folder / "ctl").write_text(mode)

    def take_few_requests(self) -> None:
        """Has the kernel give it four requests at once: otherwise a small one waits behind all of a large `fsync`."""
        (Path("/sys/block") / Path(self._loop).name / "queue" / "nr_requests").write_text("4")

    def places_of(self, path: Path) -> tuple[int, int]:
        """Where on the disk the content of a file begins and ends. It must be in one piece."""
        asked = bytearray(_MAP.pack(0, 2**64 - 1, 0, 0, 1, 0) + bytes(_EXTENT.size))
        with path.open("rb") as file:
            os.fsync(file.fileno())
            fcntl.ioctl(file.fileno(), FIEMAP, asked)
        _, begin, length, _, _, flags, *_ = _EXTENT.unpack_from(asked, _MAP.size)
        assert flags & LAST, "it is in one piece"
        return begin, begin + length

    def sync(self) -> None:
        """Of this disk alone: another one may hang."""
        _do("sync", "-f", str(self.at))

    def mount(self) -> None:
        _do("mount", self._loop, str(self.at))

    def remount(self, options: str) -> None:
        """As the kernel lets it: not while a file is open for writing, as one is when the disk is tried."""
        deadline = time.monotonic() + REMOUNT_S
        command = ["mount", "-o", f"remount,{options}", str(self.at)]
        while subprocess.run(command, capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline, f"{self.at} stays busy"
            time.sleep(0.05)

    def stop(self) -> None:
        """Has its file system take no more changes, as after an error: nothing but mounting it anew ends that."""
        _do("mount", "-o", "remount,abort", str(self.at))

    def unmount(self) -> None:
        """Takes it away, whoever uses it."""
        _do("umount", "-l", str(self.at))

    def repair(self) -> None:
        """What an operator does to a file system whose disk had failed. It must not be in use any more."""
        subprocess.run(["fsck.ext4", "-y", self._loop], capture_output=True, check=False)

    def end(self) -> None:
        if self._process.poll() is None and (self._folder / "ctl").exists():
            self.say("ok")
        subprocess.run(["umount", "-l", self.at], capture_output=True, check=False)
        if self._loop:
            subprocess.run(["losetup", "-d", self._loop], capture_output=True, check=False)
        subprocess.run(["umount", "-l", self._folder], capture_output=True, check=False)
        self._process.kill()
        self._process.wait()


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def lab_on(disks: Sequence[FaultyDisk], overrides: Mapping[str, Mapping[str, Any]]) -> Iterator[Lab]:
    """A lab one of whose servers has all its volumes on *disks*; they work again before it is taken down."""
    made = Lab.create(disks[0].at.parents[1], volumes=len(disks), overrides=overrides)
    try:
        made.up()
        yield made
    finally:
        for disk in disks:
            disk.say("ok")
        made.down()
