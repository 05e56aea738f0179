"""What somebody may leave in the place of an object that is no regular file."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))


NO_FILES: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": os.mkdir,
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "socket": _bind,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "device without a driver": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(511, 255)),
}


def put_instead(what: str, path: str) -> None:
    """Puts one of `NO_FILES` in the place of the object at *path*."""
    os.unlink(path)
    NO_FILES[what](Path(path))
