"""Disks for tests that fail, hang or go away when they are told to: ext4 on a loop device on `faultydisk.c`."""

import shlex
import subprocess
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faultydisk.c")
READY_S = 20.0


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
    """One disk, mounted at *at* from the beginning."""

    def __init__(self, folder: Path, at: Path, mib: int = 256) -> None:
        self.at = at
        self._folder = folder / "disk"
        self._folder.mkdir(parents=True)
        program, image = compiled(folder), folder / "image"
        self._process = subprocess.Popen([program, image, str(mib << 20), self._folder], start_new_session=True)
        self._loop = ""
        try:
            self._wait_for(self._folder / "ctl")
            self._loop = _output("losetup", "-f", "--show", str(self._folder / "disk"))
            _do("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", self._loop)
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
        """`ok`, `eio`, `hang` or `slow` (a fifth of a second for each request)."""
        (self._folder / "ctl").write_text(mode)

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
