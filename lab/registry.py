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
def lab_lock(root: Path) -> Iterator[None]:
    """Holds the lock of the lab at *root*; the lock of a lab that is down is deleted."""
    REGISTRY.mkdir(parents=True, exist_ok=True)
    lock = REGISTRY / f"{tag_of(root)}.lock"
    with locked(lock, f"the lab at {root}"):
        try:
            yield
        finally:
            if root not in registered():
                lock.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file at *path*, which its holder may delete; raises `Unavailable` if another command keeps it too long."""
    descriptor = _take(path, what, time.monotonic() + LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        os.close(descriptor)


def _take(path: Path, what: str, deadline_s: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(descriptor, path):
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                os.close(descriptor)
                raise Unavailable(f"another command has been working on {what} for {LOCK_TIMEOUT_S:g} s") from None
            time.sleep(LOCK_POLL_S)
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
