"""A volume: one backing directory that holds objects, and the record that every object carries.

    volume.toml                     who this is
    objects/<ino / 4096>/<ino>      one regular file per replica
    staging/                        copies that are being received; emptied when the agent starts
    trash/                          objects that were deleted, until they are purged
    unknown/                        objects that the catalog did not know, or that were damaged; made when it is needed
    backups/                        the newest backups of the catalog; made when it is needed
    probe                           what is written and read back now and then, to try the disk

The record is JSON in the extended attribute `user.godwit`, so that a person with `getfattr` can read a disk that was
pulled out of a dead server.
"""

import errno
import fcntl
import json
import os
import stat
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import msgspec

from cluster.decoding import Int64, from_json, from_toml
from cluster.durable import read_all, replace_file, sync_directory
from cluster.errors import Malformed, Refused
from cluster.volume.regular import open_regular

OBJECTS_PER_DIRECTORY = 4096
RECORD_XATTR = "user.godwit"
RECORD_MAX_BYTES = 2048
"""ext4 keeps all attributes of a file within one block of 4096 bytes; a path alone may need more."""

SHORT_PATH = 200  # characters: even if each is written as six, the record is short enough


class VolumeIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `volume.toml`. `catalog` and `generation`: of the catalog that knows its objects; empty and 0: none yet."""

    uuid: str
    cluster: str
    server: str
    layout: int = 1
    catalog: str = ""
    generation: int = 0


class ObjectRecord(msgspec.Struct, frozen=True):
    """What an object says of itself. `checksum` is the BLAKE3 digest of this version in hex, empty while unknown.

    `path`, `mode`, `uid`, `gid` and `mtime_ns` are the last known ones; the catalog has the present ones.
    """

    ino: Int64
    version: Int64
    home_epoch: Int64
    checksum: str = ""
    path: str = ""
    mode: Int64 = 0
    uid: Int64 = 0
    gid: Int64 = 0
    mtime_ns: Int64 = 0


_identity_of = from_toml(VolumeIdentity)
_record_of = from_json(ObjectRecord)


def display_path(path: bytes) -> str:
    """A path as text from which `os.fsencode` makes the same bytes again."""
    return path.decode("utf-8", "surrogateescape")


class VolumeLayout:
    """Where things are in the volume at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.staging = root / "staging"
        self.trash = root / "trash"
        self.unknown = root / "unknown"
        self.backups = root / "backups"
        self._objects_prefix = os.fspath(self.objects)

    @classmethod
    @lru_cache(maxsize=64)
    def at(cls, root: str) -> "VolumeLayout":
        """The layout of a volume that is asked for often."""
        return cls(Path(root))

    def object_path(self, ino: int) -> str:
        return f"{self._objects_prefix}/{ino // OBJECTS_PER_DIRECTORY}/{ino}"

    def create_object(self, ino: int) -> int:
        """Makes an empty object and returns a descriptor open for reading and writing; raises `OSError`."""
        path = self.object_path(ino)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOATIME  # see `cluster.volume.regular`
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            # One level only: a volume whose disk is not mounted must not come into being on the disk below.
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(path), mode=0o700)
            return os.open(path, flags, 0o600)

    def create_objects(self, inodes: Sequence[int]) -> list[int]:
        """As `create_object`; all of them or none."""
        made: list[int] = []
        try:
            made.extend(self.create_object(ino) for ino in inodes)  # those before one that fails are in it, too
        except OSError:
            for descriptor in made:
                os.close(descriptor)
            self.remove_objects(inodes[: len(made)])
            raise
        return made

    def remove_objects(self, inodes: Sequence[int]) -> None:
        """Removes objects that no row in the catalog is of; raises `OSError`."""
        for ino in inodes:
            with suppress(FileNotFoundError):
                os.unlink(self.object_path(ino))

    def open_object(self, ino: int, flags: int) -> int:
        """A descriptor of an existing object: see `open_regular`."""
        return open_regular(self.object_path(ino), flags)

    def identity(self) -> VolumeIdentity:
        """Who this volume is; raises `Refused` if it is none."""
        path = self.root / "volume.toml"
        try:
            return _identity_of(read_all(open_regular(path, os.O_RDONLY), path))
        except FileNotFoundError:
            raise Refused(f"{self.root} is not a volume: it has no volume.toml", errno.ENOENT) from None
        except Malformed as error:
            raise Refused(f"{path}: {error}") from error

    def require_empty(self) -> None:
        """Raises `Refused` if something is in the directory that is to become a volume; it may be missing."""
        there = self.root.iterdir() if self.root.exists() else ()
        if foreign := sorted(entry.name for entry in there if entry.name != "lost+found"):
            raise Refused(f"{self.root} is neither empty nor a volume (it contains {foreign[0]!r}): choose another directory")

    def close_to_others(self) -> None:
        """Lets nobody but its owner into the volume, whatever its directory was before; raises `OSError`."""
        for path, mode in ((self.root, 0o700), (self.root / "volume.toml", 0o600)):
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)

    def unformat(self) -> None:
        """Undoes `format` as long as the volume holds nothing; raises `OSError` if it does."""
        for folder in (self.objects, self.staging, self.trash):
            folder.rmdir()
        with suppress(FileNotFoundError):
            self.unknown.rmdir()
        (self.root / "volume.toml").unlink()
        sync_directory(self.root)

    def rewrite_identity(self, identity: VolumeIdentity) -> int:
        """Replaces `volume.toml` as a whole; returns a descriptor that has locked the new one already. Raises `OSError`."""
        temporary = self.staging / "volume.toml"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.toml.encode(identity))
            file.flush()
            os.fsync(file.fileno())
        # Only to read: a descriptor that can write would keep the file system from being made read-only.
        descriptor = open_regular(temporary, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before it can be found: no other agent gets between
            temporary.rename(self.root / "volume.toml")
            sync_directory(self.root)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def prepare(self, cluster: str, server: str) -> VolumeIdentity:
        """As `format`, but a directory that is this server's volume already is left as it is."""
        if not (self.root / "volume.toml").exists():
            return self.format(cluster, server)
        identity = self.identity()
        if (identity.cluster, identity.server) != (cluster, server):
            raise Refused(
                f"{self.root} is a volume of {identity.server} in cluster {identity.cluster!r}, not of {server} in {cluster!r}"
            )
        return identity

    def format(self, cluster: str, server: str) -> VolumeIdentity:
        """Makes an empty or missing directory a volume; raises `Refused` if there is something else in it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.require_empty()
        for folder in (self.objects, self.staging, self.trash):
            folder.mkdir(mode=0o700)
        identity = VolumeIdentity(uuid=str(uuid.uuid4()), cluster=cluster, server=server)
        replace_file(self.root / "volume.toml", msgspec.toml.encode(identity))
        self.close_to_others()
        return identity


def write_record(descriptor: int, record: ObjectRecord) -> None:
    """Sets an object's record; raises `OSError`. Of a path that is too long for the attribute, the end is kept."""
    # Same as below, saves 10 µs; surrogates, which stand for bytes that are no text, only `json` takes.
    if record.path.isascii() and len(record.path) <= SHORT_PATH:
        os.setxattr(descriptor, RECORD_XATTR, msgspec.json.encode(record))
        return
    fields = msgspec.to_builtins(record)
    value = _encode_fields(fields)
    while len(value) > RECORD_MAX_BYTES and fields["path"]:
        excess = (len(value) - RECORD_MAX_BYTES + 11) // 12
        fields["path"] = fields["path"][excess:]
        value = _encode_fields(fields)
    os.setxattr(descriptor, RECORD_XATTR, value)


def _encode_fields(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def has_record(descriptor: int) -> bool:
    """Whether an object has a record, which may be unreadable. Raises `OSError`."""
    try:
        os.getxattr(descriptor, RECORD_XATTR)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return False
        raise
    return True


def read_record(descriptor: int) -> ObjectRecord | None:
    """An object's record, or None if it has none that can be read."""
    try:
        return _record_of(os.getxattr(descriptor, RECORD_XATTR))
    except (OSError, Malformed):
        return None
