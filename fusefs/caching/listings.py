"""Directories whose names are all known: as they were listed, and with what this mount has changed since."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from cluster.messages import Node
from fusefs.caching.grants import Permit


class Listed(NamedTuple):
    """One entry of a directory as it was fetched."""

    cookie: int  # its place in the order of the directory, which it keeps as long as the name is not changed
    name: bytes
    node: Node  # may be out of date when the listing is kept
    permit: Permit  # of the page with which it came, for the attributes


@dataclass(frozen=True)
class KeptListing:
    """A whole listing."""

    entries: list[Listed]  # all of them, in the order of their cookies
    parent: int  # what `..` is
    permit: Permit  # of the first page: good for the names
    mark: int = 0  # of its positions (`fusefs.kernel.listings`), 0 if it has none

    @cached_property
    def by_name(self) -> dict[bytes, int]:
        """The inodes of all names that there are."""
        return {listed.name: listed.node.ino for listed in self.entries}


@dataclass(frozen=True)
class Contents:
    """All names that there are in a directory. A lookup of a name that is not among them needs no question."""

    listing: KeptListing | None  # None: it was made by this mount, empty
    changes: dict[bytes, int | None]  # by this mount since: the inode, 0 if the name is gone, None if it is not known which it is
    permit: Permit

    def ino_of(self, name: bytes) -> int | None:
        """The inode of a name, 0 if there is none; None if this mount changed it without knowing to what."""
        if name in self.changes:
            return self.changes[name]
        return 0 if self.listing is None else self.listing.by_name.get(name, 0)

    def is_empty(self) -> bool:
        """Whether it is known that there are no names."""
        listed = () if self.listing is None else self.listing.by_name
        return not any(ino != 0 for ino in self.changes.values()) and all(name in self.changes for name in listed)
