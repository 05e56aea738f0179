"""Open descriptors of objects, kept for the next request; the number of them is bounded.

A descriptor in use is never closed. One whose object was replaced or deleted is forgotten, and closed after its last use.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cluster.errors import from_os_error, refused
from cluster.volume.fence import open_object_at


class ObjectKey(NamedTuple):
    """An object of this server."""

    volume: int
    ino: int


class _Entry:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self.forgotten = False


class OpenObjects:
    """Least recently used descriptors, open for reading and writing, or for reading only if the object was fenced."""

    def __init__(self, limit: int) -> None:
        self.forgotten = 0
        self._limit = limit
        self._entries: OrderedDict[ObjectKey, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: ObjectKey) -> bool:
        return key in self._entries

    @contextmanager
    def use(self, key: ObjectKey, opened: int | None = None) -> Iterator[int]:
        """The descriptor of *key*, kept open within the block.

        *opened* is taken over if there is none of this object yet, else closed; without it, *key* must be there.
        """
        entry = self._entries.get(key)
        if entry is None:
            if opened is None:
                raise KeyError(key)
            entry = self._entries[key] = _Entry(opened)
        elif opened is not None:
            os.close(opened)
        self._entries.move_to_end(key)
        entry.users += 1
        self._evict()
        try:
            yield entry.descriptor
        finally:
            entry.users -= 1
            if entry.forgotten and not entry.users:
                os.close(entry.descriptor)
            self._evict()

    def forget(self, key: ObjectKey) -> None:
        """The path of *key* leads to another object from now on, or to none.

        `forgotten` counts these calls: who opened a path meanwhile may have the old object.
        """
        self.forgotten += 1
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._drop(entry)

    def close(self) -> None:
        """Forgets everything."""
        for key in list(self._entries):
            self.forget(key)

    def _evict(self) -> None:
        if len(self._entries) <= self._limit:
            return
        for key, entry in list(self._entries.items()):
            if len(self._entries) <= self._limit:
                return
            if not entry.users:
                del self._entries[key]
                self._drop(entry)

    @staticmethod
    def _drop(entry: _Entry) -> None:
        entry.forgotten = True
        if not entry.users:
            os.close(entry.descriptor)


def open_object_file(path: str, *, lifting: bool = False) -> int:
    """A descriptor of the object at *path*, as `open_object_at`; raises `Refused` with the system's reason."""
    try:
        return open_object_at(path, lifting=lifting)
    except FileNotFoundError as error:
        raise refused(error.errno or 0, f"no object {path}") from error
    except OSError as error:
        raise from_os_error(error, f"cannot open {path}") from error
