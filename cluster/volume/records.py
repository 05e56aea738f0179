"""What a volume's objects say of themselves, read without any process of the network: for `godwit rebuild`.

Nothing that they say is trusted: what cannot be true counts as not said.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from cluster.errors import error_text
from cluster.volume.layout import OBJECTS_PER_DIRECTORY, ObjectRecord, VolumeLayout, read_record
from cluster.volume.regular import open_regular

INO_MAX = 2**63 - 1
OWNER_MAX = 2**32 - 2  # the last number means "no change" to chown(2)


class FoundObject(NamedTuple):
    """One object as it is on its disk."""

    ino: int
    record: ObjectRecord | None = None  # None: it has none that makes sense
    size: int = 0  # bytes
    blocks: int = 0  # of 512 bytes
    mtime_ns: int = 0
    ctime_ns: int = 0
    error: str = ""  # why it cannot be looked at; then nothing else is known

    @property
    def is_blank(self) -> bool:
        """Whether it is one of those that mounts make in advance: it never was a file."""
        return self.record is None and not self.size and not self.error

    @property
    def is_as_recorded(self) -> bool:
        """Whether nothing shows that it was written after its record."""
        return self.record is not None and self.record.mtime_ns == self.mtime_ns


def folder_numbers(layout: VolumeLayout) -> list[int]:
    """The numbers of the directories of objects, in order; what is none is left out. Raises `OSError`."""
    with os.scandir(layout.objects) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(number for name in names if (number := _number(name)) is not None)


def objects_in(layout: VolumeLayout, folder: int) -> Iterator[FoundObject]:
    """The objects in a directory of objects, which may be missing. Raises `OSError` if it cannot be listed."""
    names: list[str] = []
    with suppress(FileNotFoundError):
        names = os.listdir(layout.objects / str(folder))
    for name in names:
        ino = _number(name)
        if ino and ino // OBJECTS_PER_DIRECTORY == folder:
            yield _look_at(layout, ino)


def _number(name: str) -> int | None:
    """The number that a name is, as objects and their directories are called."""
    if not (name.isascii() and name.isdigit() and len(name) <= len(str(INO_MAX))):
        return None
    number = int(name)
    return number if str(number) == name and number <= INO_MAX else None


def _look_at(layout: VolumeLayout, ino: int) -> FoundObject:
    try:
        descriptor = open_regular(layout.object_path(ino), os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            record = read_record(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        return FoundObject(ino, error=error_text(error))
    sensible = record if record is not None and _makes_sense(record, ino) else None
    return FoundObject(ino, sensible, status.st_size, status.st_blocks, status.st_mtime_ns, status.st_ctime_ns)


def _makes_sense(record: ObjectRecord, ino: int) -> bool:
    return (
        record.ino == ino
        and record.version > 0
        and record.home_epoch > 0
        and (not record.mode or stat.S_ISREG(record.mode))
        and 0 <= record.mode <= 0o177777
        and 0 <= record.uid <= OWNER_MAX
        and 0 <= record.gid <= OWNER_MAX
        and (not record.checksum or _is_digest(record.checksum))
        and _is_path(record.path)
    )


def _is_path(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _is_digest(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) == 32
    except ValueError:
        return False
