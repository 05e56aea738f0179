"""What this mount and its kernel may keep of names, attributes and listings: only what an answer's own grant allows.

The kernel keeps what it is given with a timeout; this module knows what that may be, hands out the timeouts, and keeps the nodes
and listings from which the mount itself answers. Everything is void at the grant's deadline, which counts from before the
question was asked, or when the inode is recalled, or when this mount changes it itself.

Answers may overtake one another and recalls. Each inode has a *floor*, the serial of its last recall: a grant with a smaller one
came from before it. And an answer to what was asked before a change of our own was through may be from before that. So nothing
here is decided when an answer arrives, but when it is handed to the kernel: `Allowance.until_s`. Between that and the reply there
is no await.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import trio

from cluster.leases import SERIAL_TERM_BITS
from cluster.messages import Grant, Node, Recall

CACHED_MAX = 100_000  # inodes; beyond, those that were granted longest ago are given back
GIVE_BACK_MANY = 1000
NAMES_MAX = 200_000  # names that the kernel holds; beyond, it is given no more until some have run out
LOOK_AGAIN_S = 1.0


class Seen(NamedTuple):
    """What the kernel is told of a name: the node (None: there is none), and for how many seconds it may believe it."""

    node: Node | None
    entry_s: float = 0.0
    attr_s: float = 0.0


class GivenName(NamedTuple):
    """A name that the kernel may hold until then; the inode is 0 for a name that is known to be absent."""

    until_s: float
    ino: int


@dataclass(eq=False, slots=True)
class Cached:
    """One inode that this mount holds a lease to cache.

    `names` were given to the kernel; `parents` are the directories in which it was found; `holding` numbers the times for which
    it is held without a gap.
    """

    holding: int
    deadline_s: float = 0.0
    node: Node | None = None
    node_allowed: "Allowance | None" = None
    listing: "KeptListing | None" = None
    contents: "Contents | None" = None
    names: dict[bytes, GivenName] = field(default_factory=dict)
    parents: set[int] = field(default_factory=set)


class _InForce(Protocol):
    def is_in_force(self, ino: int, serial: int, asked_s: float) -> bool: ...


class Allowance:
    """The grant of one answer: until when may what it says of an inode be kept?"""

    __slots__ = ("_caching", "_inodes", "asked_s", "deadline_s", "serial")

    def __init__(self, caching: "_InForce", serial: int, inodes: frozenset[int], asked_s: float, deadline_s: float) -> None:
        self._caching = caching
        self._inodes = inodes
        self.serial = serial
        self.asked_s = asked_s
        self.deadline_s = deadline_s

    def until_s(self, ino: int) -> float:
        """When it ends, on trio's clock; 0 if nothing may be kept. To be asked in the step in which the answer is used."""
        return self.deadline_s if ino in self._inodes and self._caching.is_in_force(ino, self.serial, self.asked_s) else 0.0

    def extended(self, until_s: float) -> "Allowance":
        """The same, for longer."""
        return Allowance(self._caching, self.serial, self._inodes, self.asked_s, until_s)


class _Nothing:
    """The caching that no inode is in force of."""

    def is_in_force(self, _ino: int, _serial: int, _asked_s: float) -> bool:
        return False


NOTHING = Allowance(_Nothing(), 0, frozenset(), 0.0, 0.0)


class Listed(NamedTuple):
    """One entry of a directory as it was fetched."""

    cookie: int
    name: bytes
    node: Node
    allowed: Allowance


@dataclass(frozen=True)
class KeptListing:
    """A whole listing, with the directory's parent and the mark of its positions."""

    entries: list[Listed]
    parent: int
    allowed: Allowance
    mark: int = 0

    @cached_property
    def by_name(self) -> dict[bytes, int]:
        """The inodes of all names that there are."""
        return {listed.name: listed.node.ino for listed in self.entries}


@dataclass(frozen=True)
class Contents:
    """All names that there are in a directory: those of a listing (None: it was empty), and what this mount has changed since."""

    listing: KeptListing | None
    changes: dict[bytes, int | None]
    allowed: Allowance

    def ino_of(self, name: bytes) -> int | None:
        """The inode of a name, 0 if there is none; None if this mount changed it without knowing to what."""
        if name in self.changes:
            return self.changes[name]
        return 0 if self.listing is None else self.listing.by_name.get(name, 0)


K = TypeVar("K", KeptListing, Contents)


@dataclass(frozen=True)
class _Floor:
    """Since when grants are good: `serial` for recalls, `asked_s` for changes of our own."""

    serial: int
    asked_s: float
    forget_s: float


class GivenUp(NamedTuple):
    """What has to be taken from the kernel for one inode: its attributes and pages, and these names in it."""

    ino: int
    names: dict[bytes, GivenName]
    parents: set[int]


class Caching:
    """All that is cached."""

    def __init__(self, now: Callable[[], float] = trio.current_time) -> None:
        self._now = now
        self._names_s = math.inf
        self._holdings = itertools.count(1)
        self._cached: OrderedDict[int, Cached] = OrderedDict()  # in the order of their last grants
        self._floors: OrderedDict[int, _Floor] = OrderedDict()
        self._first_serial = 0
        self.newest_serial = 0
        self._access_s = 0.0
        self._names = 0
        self._look_again_s = 0.0
        self.is_written_past: Callable[[int], bool] = lambda _ino: False  # written without this mount seeing it
        self._leaving: dict[int, list[GivenUp]] = {}  # given up, but the kernel may still have some of it

    def limit_names(self, names_s: float) -> None:
        """For how long at most the kernel is given a name."""
        self._names_s = names_s

    # --------------------------------------------------------------------------------------------------- grants

    def welcomed(self, term: int) -> None:
        """A manager has welcomed this mount: grants of earlier terms that are still under way are void."""
        self._first_serial = max(self._first_serial, term << SERIAL_TERM_BITS)

    def take(self, grant: Grant | None, asked_s: float) -> Allowance:
        """The allowance that an answer brought to what was asked at *asked_s*."""
        return self._take(grant, asked_s, asked_s)

    def changed(self, touched: Iterable[int], grant: Grant | None, asked_s: float) -> Allowance:
        """A change of our own is through. What was asked before now may not know of it; its own answer does, but not of another
        change of ours that came through since it was asked for."""
        now = self._now()
        if grant is not None:
            known = [ino for ino in grant.inodes if not self._changed_since(ino, asked_s)]
            grant = msgspec.structs.replace(grant, inodes=known)
        for ino in touched:
            self._raise_floor(ino, 0, now)
            if (cached := self._cached.get(ino)) is not None:
                cached.node = cached.listing = cached.contents = None
        return self._take(grant, asked_s, now)

    def _changed_since(self, ino: int, asked_s: float) -> bool:
        floor = self._floors.get(ino)
        return floor is not None and floor.asked_s > asked_s

    def _take(self, grant: Grant | None, asked_s: float, knows_s: float) -> Allowance:
        if grant is None:
            return Allowance(self, 0, frozenset(), knows_s, 0.0)
        deadline_s = asked_s + grant.access_s
        self._access_s = max(self._access_s, grant.access_s)
        self.newest_serial = max(self.newest_serial, grant.serial)
        for ino in grant.inodes:
            if self.is_in_force(ino, grant.serial, knows_s):
                cached = self._cached.get(ino)
                if cached is None:
                    cached = self._cached[ino] = Cached(next(self._holdings))
                else:
                    self._cached.move_to_end(ino)
                    if cached.deadline_s <= self._now():
                        cached.holding = next(self._holdings)
                cached.deadline_s = max(cached.deadline_s, deadline_s)
        return Allowance(self, grant.serial, frozenset(grant.inodes), knows_s, deadline_s)

    def renewed(self, grant: Grant | None, asked_s: float) -> None:
        """Leases were renewed: what was good when that was asked for is good for longer."""
        allowed = self.take(grant, asked_s)
        for ino in grant.inodes if grant is not None else ():
            cached = self._cached.get(ino)
            if (
                cached is not None
                and cached.node_allowed is not None
                and allowed.until_s(ino) > cached.node_allowed.until_s(ino) > asked_s
            ):
                cached.node_allowed = cached.node_allowed.extended(allowed.deadline_s)

    def is_in_force(self, ino: int, serial: int, asked_s: float) -> bool:
        """Whether a grant is from after the last recall of the inode, and its answer from after our last change."""
        floor = self._floors.get(ino)
        return serial >= self._first_serial and (floor is None or (serial > floor.serial and asked_s >= floor.asked_s))

    def may_keep(self, ino: int) -> bool:
        """Whether there is a lease to cache the inode at this moment."""
        cached = self._cached.get(ino)
        return cached is not None and cached.deadline_s > self._now()

    def holding(self, ino: int) -> int | None:
        """Another number than before if others could have changed the inode unnoticed meanwhile; None if they can now."""
        return self._cached[ino].holding if self.may_keep(ino) else None

    def is_held_since(self, ino: int, holding: int | None) -> bool:
        """Whether nobody else can have changed the inode since *holding* was its `holding`."""
        return holding is not None and holding == self.holding(ino)

    def leased(self) -> list[int]:
        """All inodes of which something may be cached here at this moment, for a new manager."""
        now = self._now()
        return [ino for ino, cached in self._cached.items() if cached.deadline_s > now] + list(self._leaving)

    def __len__(self) -> int:
        return len(self._cached)

    # -------------------------------------------------------------------------------------- what the mount keeps

    def keep_node(self, node: Node, allowed: Allowance) -> None:
        """Keeps the manager's node of an inode, if it may."""
        if allowed.until_s(node.ino) and (cached := self._cached.get(node.ino)) is not None:
            cached.node, cached.node_allowed = node, allowed

    def drop_node(self, ino: int) -> None:
        """What was kept of the inode is out of date by our own doing, though its attributes are what they were."""
        if (cached := self._cached.get(ino)) is not None:
            cached.node = None

    def node(self, ino: int) -> tuple[Node, Allowance] | None:
        """The manager's node, if it is kept and good."""
        cached = self._cached.get(ino)
        if cached is None or cached.node is None or cached.node_allowed is None:
            return None
        if cached.node_allowed.until_s(ino) <= self._now():
            cached.node = cached.node_allowed = None
            return None
        return cached.node, cached.node_allowed

    def fresh(self, entries: list[Listed], now: float) -> list[tuple[Node, float]] | None:
        """The nodes of all *entries*, and until when each may be kept; None if one is not kept, or is a file being written."""
        found = []
        for listed in entries:
            cached = self._cached.get(listed.node.ino)
            if cached is None or cached.node is None or cached.node_allowed is None:
                return None
            until_s = cached.node_allowed.until_s(listed.node.ino)
            if until_s <= now or cached.node.dirty:
                return None
            found.append((cached.node, until_s))
        return found

    def keep_listing(self, ino: int, listing: KeptListing) -> None:
        """Keeps the whole listing of a directory, if it may."""
        if listing.allowed.until_s(ino) and (cached := self._cached.get(ino)) is not None:
            cached.listing = listing
            cached.contents = Contents(listing, {}, listing.allowed)

    def keep_contents(self, ino: int, contents: Contents) -> None:
        """Keeps what is known of all names in a directory, if it may and if they are not too many."""
        if len(contents.changes) <= NAMES_MAX and contents.allowed.until_s(ino) and (cached := self._cached.get(ino)) is not None:
            cached.contents = contents

    def contents(self, ino: int) -> Contents | None:
        """All names of a directory, if they are known."""
        cached = self._cached.get(ino)
        return None if cached is None else self._while_good(ino, cached.contents)

    def listing(self, ino: int) -> KeptListing | None:
        """The whole listing of a directory, if it is kept and good."""
        cached = self._cached.get(ino)
        return None if cached is None else self._while_good(ino, cached.listing)

    def _while_good(self, ino: int, kept: K | None) -> K | None:
        return kept if kept is not None and kept.allowed.until_s(ino) > self._now() else None

    # --------------------------------------------------------------------------------- what the kernel is given

    def seen(
        self, node: Node | None, attr_until_s: float, parent: int = 0, name: bytes = b"", entry_until_s: float = 0.0
    ) -> Seen:
        """What to tell the kernel, which keeps it as long as is said here. The reply follows without an await."""
        now = self._now()
        ino = 0 if node is None else node.ino
        until_s = min(entry_until_s, now + self._names_s)
        entry_s = until_s - now
        if entry_s <= 0 or not self._note_name(parent, name, until_s, ino):
            entry_s = 0.0
        attr_s = 0.0 if self.is_written_past(ino) else max(0.0, attr_until_s - now)
        if attr_s and parent and (cached := self._cached.get(ino)) is not None:
            cached.parents.add(parent)
        return Seen(node, entry_s, attr_s)

    def _note_name(self, parent: int, name: bytes, until_s: float, ino: int) -> bool:
        cached = self._cached.get(parent)
        if cached is None:
            return False
        known = cached.names.get(name)
        if known is None:
            if self._names >= NAMES_MAX and not self._forget_names():
                return False
            self._names += 1
        elif known.until_s == until_s and known.ino == ino:
            return True
        cached.names[name] = GivenName(until_s, ino)
        return True

    def _forget_names(self) -> bool:
        """Forgets names that have run out; whether there is room then. Looks at most once in a while."""
        now = self._now()
        if now >= self._look_again_s:
            self._look_again_s = now + LOOK_AGAIN_S
            for cached in self._cached.values():
                cached.names = {name: given for name, given in cached.names.items() if given.until_s > now}
            self._names = sum(len(cached.names) for cached in self._cached.values())
        return self._names < NAMES_MAX

    def moved_name(self, old: tuple[int, bytes], new: tuple[int, bytes], *, exchange: bool) -> float:
        """The kernel gives an entry another name by itself, but goes on believing it for as long as it was told the old one.

        Returns until when that is if it is not covered by a lease for the directory where the name is now, else 0.
        """
        moved, replaced = self.removed_name(*old), self.removed_name(*new)
        until_s = self._note_moved(new, moved)
        return max(until_s, self._note_moved(old, replaced)) if exchange else until_s

    def _note_moved(self, name: tuple[int, bytes], given: GivenName | None) -> float:
        if given is None or given.until_s <= self._now():
            return 0.0
        holder = self._cached.get(name[0])
        covered = holder is not None and holder.deadline_s >= given.until_s and self._note_name(*name, *given)
        return 0.0 if covered else given.until_s

    def removed_name(self, parent: int, name: bytes) -> GivenName | None:
        """The kernel does not have a name any more; what it had, or may have had if that is just being taken away."""
        cached = self._cached.get(parent)
        given = None if cached is None else cached.names.pop(name, None)
        if given is not None:
            self._names -= 1
            return given
        going = [item.names[name] for item in self._leaving.get(parent, ()) if name in item.names]
        return max(going, default=None)

    def given_ino(self, parent: int, name: bytes) -> int | None:
        """The inode of a name as the kernel was told, 0 if it was told that there is none; None if that is not known."""
        cached = self._cached.get(parent)
        given = None if cached is None else cached.names.get(name)
        return None if given is None else given.ino

    # --------------------------------------------------------------------------------------------------- ending

    def recalled(self, recall: Recall) -> list[GivenUp]:
        """Nothing of these may be kept from this moment on; what the kernel may still have of it, until `left`."""
        self.newest_serial = max(self.newest_serial, recall.serial)
        return self._leave(recall.inodes, recall.serial)

    def _leave(self, inodes: Iterable[int], serial: int) -> list[GivenUp]:
        for ino in inodes:
            self._raise_floor(ino, serial, 0.0)
        given_up = [self._give_up(ino) for ino in inodes]
        for item in given_up:
            self._leaving.setdefault(item.ino, []).append(item)
        return given_up

    def left(self, given_up: Iterable[GivenUp]) -> None:
        """The kernel has nothing of this any more."""
        for item in given_up:
            going = self._leaving[item.ino] = [other for other in self._leaving[item.ino] if other is not item]
            if not going:
                del self._leaving[item.ino]

    def _give_up(self, ino: int) -> GivenUp:
        cached = self._cached.pop(ino, None)
        if cached is None:
            return GivenUp(ino, {}, set())
        self._names -= len(cached.names)
        now = self._now()
        return GivenUp(ino, {name: given for name, given in cached.names.items() if given.until_s > now}, cached.parents)

    def _raise_floor(self, ino: int, serial: int, asked_s: float) -> None:
        known = self._floors.pop(ino, None)
        forget_s = self._now() + self._access_s  # whatever was granted before has run out then
        if known is not None:
            serial, asked_s = max(serial, known.serial), max(asked_s, known.asked_s)
        self._floors[ino] = _Floor(serial, asked_s, forget_s)

    def voided_names(self) -> None:
        """The kernel has forgotten all names."""
        for cached in self._cached.values():
            cached.names.clear()
        self._names = 0

    def give_back(self, is_open: Callable[[int], bool]) -> tuple[list[GivenUp], int]:
        """What to give back so that the bound is kept, of what was granted longest ago, and the serial up to which it ends. The
        kernel may still have some of it, until `left`."""
        if len(self._cached) <= CACHED_MAX:
            return [], 0
        oldest = [ino for ino in self._cached if not is_open(ino)][:GIVE_BACK_MANY]
        return self._leave(oldest, self.newest_serial), self.newest_serial

    def expired(self) -> list[GivenUp]:
        """Forgets what has run out; the kernel's timeouts have, too, but not its pages of what is open and mapped."""
        now = self._now()
        ended = []
        while self._cached:
            ino, cached = next(iter(self._cached.items()))
            if cached.deadline_s > now:
                break
            ended.append(self._give_up(ino))
        while self._floors:
            ino, floor = next(iter(self._floors.items()))
            if floor.forget_s > now:
                break
            del self._floors[ino]
        return ended

    def next_end_s(self) -> float:
        """When `expired` will find something at the earliest."""
        return next((cached.deadline_s for cached in self._cached.values()), self._now() + 1.0)
