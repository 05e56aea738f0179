"""Which labs of this machine are up: one entry each under `/run`, so that none outlives a reboot."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cluster.errors import Unavailable

REGISTRY = Path("/run/godwit/labs")
LOCK_TIMEOUT_S = 120.0
LOCK_POLL_S = 0.05


class Entry(msgspec.Struct, frozen=True):
    """One lab that is up, or was killed without being taken down."""

    root: str


def tag_of(root: Path) -> str:
    """Eight hex digits that name the lab at *root* in the kernel; made of the path, so that leftovers are found again."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:8]


def register(root: Path) -> None:
    """Notes that the lab at *root* is up; may be repeated."""
    REGISTRY.mkdir(parents=True, exist_ok=True)
    temporary = _entry_path(root).with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(Entry(str(root))))
    temporary.rename(_entry_path(root))


def unregister(root: Path) -> None:
    """Takes the note back; may be repeated."""
    _entry_path(root).unlink(missing_ok=True)


def registered() -> list[Path]:
    """The roots of all labs that are up, in order."""
    roots = []
    for path in REGISTRY.glob("*.json"):
        try:
            roots.append(Path(msgspec.json.decode(path.read_bytes(), type=Entry).root))
        except (FileNotFoundError, msgspec.DecodeError):
            continue
    return sorted(roots)


def _entry_path(root: Path) -> Path:
    return REGISTRY / f"{tag_of(root)}.json"


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file at *path*; raises `Unavailable` if another command does not let it go in time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(f"another command has been working on {what} for {LOCK_TIMEOUT_S:g} s") from None
                time.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
