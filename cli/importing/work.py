"""What an import has in hand: directories, and names on their way."""

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from cli.importing.findings import Found, Place
from cluster.messages import Commit, ImportedName, Node
from cluster.volume.layout import ObjectRecord, VolumeLayout
from cluster.volume.takeover import How


@dataclass(frozen=True)
class Directory:
    """A directory of both sides."""

    place: Place
    ino: int
    path: bytes  # in the network
    known: dict[bytes, Node] | None  # what the network has in it; None: it was made just now


@dataclass(eq=False)
class Work:
    """One name on its way."""

    directory: Directory
    found: Found
    folder: int  # descriptor of the directory that has it
    name: ImportedName | None = None  # what is asked of the manager
    known: Node | None = None  # what the network has there already
    source: int = -1  # descriptor of the file
    made: int = -1  # descriptor of the object; the same where that is the file itself
    how: How | None = None  # None: it was taken over before, or is no file
    record: ObjectRecord | None = None  # what the file was when it was taken over
    is_same: bool = False  # as what the network has
    lost: int = 0  # attributes that the network cannot have

    @property
    def place(self) -> Place:
        return (*self.directory.place, self.found.name)

    @property
    def path(self) -> bytes:
        """In the network."""
        return self.directory.path.rstrip(b"/") + b"/" + self.found.name

    def close(self) -> None:
        for descriptor in {self.source, self.made} - {-1}:
            os.close(descriptor)
        self.source = self.made = -1


class Destination(NamedTuple):
    """Where the objects go."""

    layout: VolumeLayout
    volume: int  # its number
    device: int  # of its file system


@dataclass
class Settled:
    """What is left to do after names were made."""

    commits: list[Commit] = field(default_factory=list)
    below: list[tuple[Work, int]] = field(default_factory=list)  # directories, with their inodes
    again: list[Work] = field(default_factory=list)
