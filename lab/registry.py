"""Which labs of this machine are up: one entry each under `/run`, so that none outlives a reboot."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cluster.decoding import from_json
from cluster.durable import read_file, replace_file
from cluster.errors import Malformed, Unavailable
from cluster.runtime import PUBLIC, RUNTIME, make_runtime_directory, open_lock

REGISTRY = RUNTIME / "labs"
LOCK_TIMEOUT_S = 120.0  # twice what `up` gives a lab to start in
LOCK_POLL_S = 0.05  # flock has no wait with a limit


class Entry(msgspec.Struct, frozen=True):
    """One lab that is up, or was killed without being taken down."""

    root: str


_decode = from_json(Entry)


def tag_of(root: Path) -> str:
    """Eight hex digits that name the lab at *root* in the kernel; made of the path, so that leftovers are found again."""
    return hashlib.sha256(os.fsencode(root)).hexdigest()[:8]


def register(root: Path, registry: Path = REGISTRY) -> None:
    """Adds an entry for the lab at *root*; may be repeated."""
    make_runtime_directory(registry, PUBLIC)
    replace_file(_entry_path(registry, root), msgspec.json.encode(Entry(str(root))), mode=0o644, synced=False)


def unregister(root: Path) -> None:
    """Removes the lab's entry; may be repeated."""
    _entry_path(REGISTRY, root).unlink(missing_ok=True)


def registered(registry: Path = REGISTRY) -> list[Path]:
    """The roots of all labs that are up, in order."""
    roots = []
    for path in registry.glob("*.json"):
        try:
            # An entry that vanishes is of a lab that is being taken down.
            roots.append(Path(_decode(read_file(path)).root))
        except (FileNotFoundError, Malformed):
            continue
    return sorted(roots)


def _entry_path(registry: Path, root: Path) -> Path:
    return registry / f"{tag_of(root)}.json"


@contextmanager
def lab_lock(root: Path) -> Iterator[None]:
    """Holds the lock of the lab at *root*; the lock of a lab that is down is deleted."""
    make_runtime_directory(REGISTRY, PUBLIC)
    lock = REGISTRY / f"{tag_of(root)}.lock"
    with locked(lock, f"the lab at {root}"):
        try:
            yield
        finally:
            if root not in registered():
                # While it is held: who waits for the old file finds after its flock that the path is another (`_is_same_file`).
                lock.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file at *path*, which its holder may delete; raises `Unavailable` if another command keeps it too long."""
    descriptor = _take(path, what, time.monotonic() + LOCK_TIMEOUT_S)
    try:
        yield
    finally:
        os.close(descriptor)  # closing the last descriptor ends the flock


def _take(path: Path, what: str, deadline_s: float) -> int:
    while True:
        # Opened anew for each attempt: the holder before may have deleted the file that we had open.
        descriptor = open_lock(path)
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
