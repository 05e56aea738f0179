"""What this mount and its kernel may keep of names, attributes and listings: only what an answer's own grant allows.

The kernel keeps what it is given with a timeout; this module knows what that may be, hands out the timeouts, and keeps the nodes
and listings from which the mount itself answers. Everything is void at the grant's deadline, which counts from before the
question was asked, or when the inode is recalled, or when this mount changes it itself.

Answers may overtake one another and recalls. Each inode has a *floor*, the serial of its last recall: a grant with a smaller one
came from before it. And an answer to what was asked before a change of our own was through may be from before that. So nothing
here is decided when an answer arrives, but when it is handed to the kernel: `Permit.until_s`. Between that and the reply there
is no await.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

import msgspec
import trio

from cluster.leases import SERIAL_TERM_BITS
from cluster.messages import Grant, Node, Recall
from fusefs.caching.grants import Permit
from fusefs.caching.listings import Contents, KeptListing, Listed

PROLONG_S = 1.0  # what lasts nearly as long is left as it is
SWEEP_S = 1.0  # looking through all names takes tens of milliseconds when there are many: at most so often


@dataclass(frozen=True)
class CacheLimits:
    """How much is cached at most."""

    cached_max: int = 100_000  # inodes; beyond, those that were granted longest ago are given back
    give_back_many: int = 1000  # at a time: each costs a notification to the kernel
    names_max: int = 200_000  # names that the kernel holds; beyond, it is given no more until some have run out


CACHE_LIMITS = CacheLimits()


class EntryReply(NamedTuple):
    """What the kernel is told of a name or an inode."""

    node: Node | None  # None: there is nothing of that name
    entry_s: float = 0.0  # for how long the kernel may believe the name
    attr_s: float = 0.0  # for how long the attributes; 0: it asks again before a program gets them

    def to_ask_again(self) -> "EntryReply":
        """The same to `LINK` and `SETATTR`: attributes in these answers the kernel believes even if it was told to forget them
        before it took them in (`fuse_do_setattr`, and `fuse_iget` without a version, in fs/fuse)."""
        return self._replace(attr_s=0.0)


class GivenName(NamedTuple):
    """A name that the kernel may hold."""

    until_s: float  # on trio's clock
    ino: int  # 0: it was told that there is none


@dataclass(eq=False, slots=True)
class Cached:
    """One inode that this mount holds a lease to cache."""

    holding: int  # the number of this time for which it is held without a gap
    deadline_s: float = 0.0  # of its last grant
    node: Node | None = None  # the catalog's; of a dirty file, only the home knows size and times
    node_permit: Permit | None = None
    listing: KeptListing | None = None  # of a directory that was read as a whole, for its readers
    contents: Contents | None = None  # the same for lookups, with our own changes
    names: dict[bytes, GivenName] = field(default_factory=dict)  # in this directory, that the kernel was given
    parents: set[int] = field(default_factory=set)  # directories in which the kernel was given it, with attributes to keep


K = TypeVar("K", KeptListing, Contents)


@dataclass(frozen=True)
class _Floor:
    """Since when grants of an inode are good."""

    serial: int  # of its last recall: what was granted before, or with it, is void
    asked_s: float  # when our last change was through: what was asked before may not know of it
    forget_s: float  # when all that the floor voids has run out by itself


class Told(Protocol):
    """What the kernel may be told without asking here, until the times that are said with it."""

    def know(self, node: Node, until_s: float) -> None:
        """The attributes of an inode."""

    def tell(self, parent: int, name: bytes, ino: int, until_s: float) -> None:
        """A name that the kernel is given in this step; inode 0: there is none of that name."""

    def drop(self, ino: int) -> None:
        """Neither the attributes of an inode nor any name in it may be told any more."""

    def drop_name(self, parent: int, name: bytes) -> None:
        """Likewise for one name."""

    def drop_names(self) -> None:
        """Likewise for all names."""


class _ToldOnce:
    """The kernel asks here each time."""

    def know(self, _node: Node, _until_s: float) -> None:
        return

    def tell(self, _parent: int, _name: bytes, _ino: int, _until_s: float) -> None:
        return

    def drop(self, _ino: int) -> None:
        return

    def drop_name(self, _parent: int, _name: bytes) -> None:
        return

    def drop_names(self) -> None:
        return


_TOLD_ONCE = _ToldOnce()


class GivenUp(NamedTuple):
    """What has to be taken from the kernel for one inode: its attributes and pages, and these names in it."""

    ino: int
    names: dict[bytes, GivenName]
    parents: set[int]


class Caching:
    """All that is cached."""

    def __init__(
        self,
        now: Callable[[], float] = trio.current_time,
        is_written_past: Callable[[int], bool] = lambda _ino: False,
        limits: CacheLimits = CACHE_LIMITS,
        told: Told = _TOLD_ONCE,
    ) -> None:
        """*is_written_past* says whether an inode may be written without this mount seeing it: its attributes are not kept."""
        self._now = now
        self._told = told  # of what is kept here; dropped with it
        self._limits = limits
        self._names_s = math.inf  # for how long at most the kernel is given a name
        self._holdings = itertools.count(1)
        self._cached: OrderedDict[int, Cached] = OrderedDict()  # in the order of their last grants
        self._floors: OrderedDict[int, _Floor] = OrderedDict()  # in the order in which they may be forgotten
        self._first_serial = 0  # of the present manager: older grants are void
        self.newest_serial = 0  # of all grants and recalls so far
        self._access_s = 0.0  # the longest access time that was granted: after it, all grants of now have run out
        self._names = 0  # how many the kernel may hold
        self._next_sweep_s = 0.0
        self._is_written_past = is_written_past
        self._leaving: dict[int, list[GivenUp]] = {}  # given up, but the kernel may still have some of it

    def limit_names(self, names_s: float) -> None:
        """For how long at most the kernel is given a name."""
        self._names_s = names_s

    # --------------------------------------------------------------------------------------------------- grants

    def welcomed(self, term: int) -> None:
        """A manager has welcomed this mount: grants of earlier terms that are still under way are void."""
        self._first_serial = max(self._first_serial, term << SERIAL_TERM_BITS)

    def take(self, grant: Grant | None, asked_s: float) -> Permit:
        """The permit that an answer brought to what was asked at *asked_s*."""
        return self._take(grant, asked_s, asked_s)

    def changed(self, touched: Iterable[int], grant: Grant | None, asked_s: float) -> Permit:
        """A change of our own is through. What was asked before now may not know of it; its own answer does, but not of another
        change of ours that came through since it was asked for."""
        now = self._now()
        if grant is not None:
            # Before the floors are raised for this change itself: only others void its own grant.
            known = [ino for ino in grant.inodes if not self._changed_since(ino, asked_s)]
            grant = msgspec.structs.replace(grant, inodes=known)
        for ino in touched:
            self._raise_floor(ino, 0, now)
            self._told.drop(ino)
            if (cached := self._cached.get(ino)) is not None:
                cached.node = cached.listing = cached.contents = None
        return self._take(grant, asked_s, now)

    def _changed_since(self, ino: int, asked_s: float) -> bool:
        floor = self._floors.get(ino)
        return floor is not None and floor.asked_s > asked_s

    def _take(self, grant: Grant | None, asked_s: float, knows_s: float) -> Permit:
        if grant is None:
            return Permit(self, 0, frozenset(), knows_s, 0.0)
        # From before the question: the manager counts from when it answers, which is later, so we are always first to stop.
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
                    # Run out and not removed yet: others may have changed it in between.
                    if cached.deadline_s <= self._now():
                        cached.holding = next(self._holdings)
                cached.deadline_s = max(cached.deadline_s, deadline_s)
        return Permit(self, grant.serial, frozenset(grant.inodes), knows_s, deadline_s)

    def renewed(self, grant: Grant | None, asked_s: float) -> None:
        """Leases were renewed: what was good when that was asked for is good for longer."""
        permit = self.take(grant, asked_s)
        for ino in grant.inodes if grant is not None else ():
            cached = self._cached.get(ino)
            if (
                cached is not None
                and cached.node is not None
                and cached.node_permit is not None
                and permit.until_s(ino) > cached.node_permit.until_s(ino) > asked_s
            ):
                self.keep_node(cached.node, cached.node_permit.extended(permit.deadline_s))

    def prolonged(self, grant: Grant, asked_s: float) -> None:
        """This mount is alone with these for longer: what is kept of them, with its own changes in it, is good for longer."""
        now, deadline_s = self._now(), asked_s + grant.access_s
        self.newest_serial = max(self.newest_serial, grant.serial)
        self._access_s = max(self._access_s, grant.access_s)
        for ino in grant.inodes:
            cached = self._cached.get(ino)
            if cached is None or cached.deadline_s <= now or not self.is_in_force(ino, grant.serial, math.inf):
                continue
            cached.deadline_s = max(cached.deadline_s, deadline_s)
            self._cached.move_to_end(ino)
            # What was made a moment ago lasts as long already.
            if (kept := self.node(ino)) is not None and kept[1].deadline_s < deadline_s - PROLONG_S:
                self.keep_node(kept[0], kept[1].extended(deadline_s))
            if (contents := self.contents(ino)) is not None and contents.permit.deadline_s < deadline_s - PROLONG_S:
                cached.contents = replace(contents, permit=contents.permit.extended(deadline_s))

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

    def keep_node(self, node: Node, permit: Permit) -> None:
        """Keeps the manager's node of an inode, if it may."""
        until_s = permit.until_s(node.ino)
        if until_s and (cached := self._cached.get(node.ino)) is not None:
            cached.node, cached.node_permit = node, permit
            if not self._is_written_past(node.ino):
                self._told.know(node, until_s)

    def drop_node(self, ino: int) -> None:
        """What was kept of the inode is out of date by our own doing, though its attributes are what they were."""
        self._told.drop(ino)
        if (cached := self._cached.get(ino)) is not None:
            cached.node = None

    def node(self, ino: int) -> tuple[Node, Permit] | None:
        """The manager's node, if it is kept and good."""
        cached = self._cached.get(ino)
        if cached is None or cached.node is None or cached.node_permit is None:
            return None
        if cached.node_permit.until_s(ino) <= self._now():
            cached.node = cached.node_permit = None
            return None
        return cached.node, cached.node_permit

    def fresh(self, entries: list[Listed], now: float) -> list[tuple[Node, float]] | None:
        """The nodes of all *entries*, and until when each may be kept; None if one is not kept, or is a file being written."""
        found = []
        for listed in entries:
            cached = self._cached.get(listed.node.ino)
            if cached is None or cached.node is None or cached.node_permit is None:
                return None
            until_s = cached.node_permit.until_s(listed.node.ino)
            if until_s <= now or cached.node.dirty:
                return None
            found.append((cached.node, until_s))
        return found

    def keep_listing(self, ino: int, listing: KeptListing) -> None:
        """Keeps the whole listing of a directory, if it may."""
        if listing.permit.until_s(ino) and (cached := self._cached.get(ino)) is not None:
            cached.listing = listing
            cached.contents = Contents(listing, {}, listing.permit)

    def keep_contents(self, ino: int, contents: Contents) -> None:
        """Keeps what is known of all names in a directory, if it may and if they are not too many."""
        is_short = len(contents.changes) <= self._limits.names_max
        if is_short and contents.permit.until_s(ino) and (cached := self._cached.get(ino)) is not None:
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
        return kept if kept is not None and kept.permit.until_s(ino) > self._now() else None

    # --------------------------------------------------------------------------------- what the kernel is given

    def entry_reply(
        self, node: Node | None, attr_until_s: float, parent: int = 0, name: bytes = b"", entry_until_s: float = 0.0
    ) -> EntryReply:
        """What to tell the kernel, which keeps it as long as is said here. The reply follows without an await."""
        now = self._now()
        ino = 0 if node is None else node.ino
        until_s = min(entry_until_s, now + self._names_s)
        entry_s = until_s - now
        if entry_s <= 0 or not self._note_name(parent, name, until_s, ino):
            entry_s = 0.0
        # Size and times of what is written past the mount change without it: the kernel has to ask for them each time.
        attr_s = 0.0 if self._is_written_past(ino) else max(0.0, attr_until_s - now)
        if attr_s and parent and (cached := self._cached.get(ino)) is not None:
            cached.parents.add(parent)
        if entry_s and (attr_s or node is None):
            self._told.tell(parent, name, ino, until_s)
        return EntryReply(node, entry_s, attr_s)

    def _note_name(self, parent: int, name: bytes, until_s: float, ino: int) -> bool:
        cached = self._cached.get(parent)
        if cached is None:
            return False
        known = cached.names.get(name)
        if known is None:
            if self._names >= self._limits.names_max and not self._forget_names():
                return False
            self._names += 1
        elif known.until_s == until_s and known.ino == ino:
            return True  # most lookups under one lease: saves making the tuple
        cached.names[name] = GivenName(until_s, ino)
        return True

    def _forget_names(self) -> bool:
        """Forgets names that have run out; whether there is room then. Looks at most once in a while."""
        now = self._now()
        if now >= self._next_sweep_s:
            self._next_sweep_s = now + SWEEP_S
            for cached in self._cached.values():
                cached.names = {name: given for name, given in cached.names.items() if given.until_s > now}
            self._names = sum(len(cached.names) for cached in self._cached.values())
        return self._names < self._limits.names_max

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
        self._told.drop_name(parent, name)
        cached = self._cached.get(parent)
        given = None if cached is None else cached.names.pop(name, None)
        if given is not None:
            self._names -= 1
            return given
        # It may be in the middle of being dropped, for a recall: then the kernel may have it still.
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
        # All floors before anything is given up: an answer that comes from now on grants nothing of any of them.
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
        self._told.drop(ino)
        cached = self._cached.pop(ino, None)
        if cached is None:
            return GivenUp(ino, {}, set())
        self._names -= len(cached.names)
        now = self._now()
        return GivenUp(ino, {name: given for name, given in cached.names.items() if given.until_s > now}, cached.parents)

    def _raise_floor(self, ino: int, serial: int, asked_s: float) -> None:
        known = self._floors.pop(ino, None)  # and to the end again: they are forgotten in this order
        forget_s = self._now() + self._access_s  # whatever was granted before has run out then
        if known is not None:
            serial, asked_s = max(serial, known.serial), max(asked_s, known.asked_s)
        self._floors[ino] = _Floor(serial, asked_s, forget_s)

    def voided_names(self) -> None:
        """The kernel has forgotten all names."""
        self._told.drop_names()
        for cached in self._cached.values():
            cached.names.clear()
        self._names = 0

    def give_back(self, is_open: Callable[[int], bool]) -> tuple[list[GivenUp], int]:
        """What to give back so that the bound is kept, of what was granted longest ago, and the serial up to which it ends. The
        kernel may still have some of it, until `left`."""
        if len(self._cached) <= self._limits.cached_max:
            return [], 0
        oldest = [ino for ino in self._cached if not is_open(ino)][: self._limits.give_back_many]
        return self._leave(oldest, self.newest_serial), self.newest_serial

    def expired(self) -> list[GivenUp]:
        """Forgets what has run out; the kernel's timeouts have, too, but not its pages of what is open and mapped."""
        now = self._now()
        ended = []
        while self._cached:
            ino, cached = next(iter(self._cached.items()))
            if cached.deadline_s > now:
                break  # nearly in the order of deadlines: one that was granted for shorter only goes later than it could
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
