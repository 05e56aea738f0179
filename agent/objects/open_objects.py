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

    volume: int  # the manager's number, not the position in the configuration
    ino: int


class _Entry:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor  # closed exactly once: by `_drop`, or by the last user after it
        self.users = 0  # blocks of `use` that are under way
        self.forgotten = False  # not in the table any more; whoever uses it last closes it


class OpenObjects:
    """Least recently used descriptors, open for reading and writing, or for reading only if the object was fenced."""

    def __init__(self, limit: int) -> None:
        self.forgotten = 0  # how often `forget` was called; compared by who opens a path in a thread
        self._limit = limit  # descriptors; exceeded only while all of them are in use
        self._entries: OrderedDict[ObjectKey, _Entry] = OrderedDict()  # least recently used first

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
            # Somebody else opened the same object while our thread did: one of the two descriptors is enough.
            os.close(opened)
        self._entries.move_to_end(key)
        entry.users += 1
        self._evict()
        try:
            yield entry.descriptor
        finally:
            entry.users -= 1
            # `forget` came while this was in use, and left the closing to us.
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

    def forget_volume(self, volume: int) -> None:
        """The volume is closed: nothing of it may be kept open, or its disk could not be taken away."""
        for key in [key for key in self._entries if key.volume == volume]:
            self.forget(key)

    def close(self) -> None:
        """Forgets everything."""
        for key in list(self._entries):
            self.forget(key)

    def _evict(self) -> None:
        if len(self._entries) <= self._limit:
            return
        # Those in use are passed over, not moved: they are evicted when their last user calls this again.
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
        # `from_os_error` would make EIO of it: here it says that there is no such object.
        raise refused(error.errno or 0, f"no object {path}") from error
    except OSError as error:
        raise from_os_error(error, f"cannot open {path}") from error
