"""One inode that is open on this mount, as a state machine: `TRANSITIONS` is the only place that says which stage follows.

The stage is what the manager and the catalog have been told. Everything else about an open inode is beside it, since it changes
independently: the home and the replicas, how the kernel reads and writes (`KernelIo`), and the policy. All of it is changed by
methods that say what has happened; nobody else assigns to it (`tests/fusefs/test_open_inode.py`). `docs/open-files.md` shows
the table.
"""

import errno
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import msgspec
import trio

from cluster.errors import refused
from cluster.messages import Node, Opened, Replica
from fusefs.content.local_object import LocalObject
from fusefs.content.objects import Object


class Stage(Enum):
    """How far an inode is between its first open and the commit after its last close."""

    ENTERED = "entered"  # this mount is opening it; the manager does not count it as open here
    READING = "reading"  # the manager counts it as open here; no commit is owed
    WRITING = "writing"  # registered to write; nothing was written through the mount since the last commit
    WRITTEN = "written"  # registered to write; something was written that is not committed
    COMMITTING = "committing"  # a commit is under way that covers all that was written
    OVERTAKEN = "overtaken"  # a commit is under way, and a write has begun that it may not cover
    LEFT = "left"  # `OpenFiles` has another state for it by now, or none

    __hash__ = object.__hash__  # same as Enum's, which is a function in Python: saves 0.3 µs for each event


class Event(Enum):
    """What happens to an open inode."""

    REGISTERED = "the manager registers it to be read"
    REGISTERED_TO_WRITE = "the manager registers it to be written"
    PRESENTED = "the manager is told that it is open here"
    CREATED = "this mount has created it"
    WRITE = "a write begins"
    COMMIT = "a commit begins"
    COMMITTED = "the commit is in the catalog"
    COMMIT_FAILED = "the commit fails, or is given up"
    SETTLED = "it has no writer any more, and its last commit is over"
    LEFT = "it has no handle any more, and does not linger"

    __hash__ = object.__hash__


TRANSITIONS: dict[Stage, dict[Event, Stage]] = {
    Stage.ENTERED: {
        Event.REGISTERED: Stage.READING,
        Event.REGISTERED_TO_WRITE: Stage.WRITING,
        Event.PRESENTED: Stage.READING,
        Event.CREATED: Stage.WRITTEN,
        Event.LEFT: Stage.LEFT,
    },
    Stage.READING: {
        Event.REGISTERED: Stage.READING,
        Event.REGISTERED_TO_WRITE: Stage.WRITING,
        Event.PRESENTED: Stage.READING,
        Event.CREATED: Stage.WRITTEN,
        Event.LEFT: Stage.LEFT,
    },
    Stage.WRITING: {
        Event.REGISTERED_TO_WRITE: Stage.WRITING,
        Event.CREATED: Stage.WRITTEN,
        Event.WRITE: Stage.WRITTEN,
        Event.COMMIT: Stage.COMMITTING,
        Event.SETTLED: Stage.READING,
    },
    Stage.WRITTEN: {
        Event.REGISTERED_TO_WRITE: Stage.WRITTEN,
        Event.CREATED: Stage.WRITTEN,
        Event.WRITE: Stage.WRITTEN,
        Event.COMMIT: Stage.COMMITTING,
        Event.SETTLED: Stage.READING,
    },
    Stage.COMMITTING: {
        Event.CREATED: Stage.OVERTAKEN,
        Event.WRITE: Stage.OVERTAKEN,
        Event.COMMITTED: Stage.WRITING,
        Event.COMMIT_FAILED: Stage.WRITTEN,
    },
    Stage.OVERTAKEN: {
        Event.CREATED: Stage.OVERTAKEN,
        Event.WRITE: Stage.OVERTAKEN,
        Event.COMMITTED: Stage.WRITTEN,
        Event.COMMIT_FAILED: Stage.WRITTEN,
    },
    Stage.LEFT: {},
}

METHODS: dict[Event, str] = {
    Event.REGISTERED: "registered",
    Event.REGISTERED_TO_WRITE: "registered",
    Event.PRESENTED: "presented",
    Event.CREATED: "created",
    Event.WRITE: "write_begins",
    Event.COMMIT: "commit_begins",
    Event.COMMITTED: "committed",
    Event.COMMIT_FAILED: "commit_failed",
    Event.SETTLED: "settled",
    Event.LEFT: "left",
}
"""The method of `OpenInode` that each event is."""

_TO_WRITE = (Stage.WRITING, Stage.WRITTEN, Stage.COMMITTING, Stage.OVERTAKEN)  # compared one by one: faster than by hashes
_REGISTERED = (Stage.READING, *_TO_WRITE)
_UNCOMMITTED = (Stage.WRITTEN, Stage.OVERTAKEN)
_WRITTEN = Stage.WRITTEN  # looking it up in the enumeration would be half the cost of `write_begins`


def table() -> str:
    """The stages as a table in Markdown, for docs/open-files.md."""
    lines = [f"| event | method | {' | '.join(stage.value for stage in Stage)} |", f"|---|---|{'---|' * len(Stage)}"]
    for event in Event:
        following = [row[event].value if event in row else "–" for row in TRANSITIONS.values()]
        lines.append(f"| {event.value} | `{METHODS[event]}` | {' | '.join(following)} |")
    return "\n".join(lines) + "\n"


class IoMode(Enum):
    """How the kernel reads and writes through a handle."""

    CACHED = "through its page cache, which asks the mount"
    DIRECT = "by asking the mount each time"
    PASSED = "on the home's object, past the mount"


class Backing(NamedTuple):
    """The object that the kernel reads and writes by itself: its number in the kernel, its device and its inode there."""

    number: int
    device: int
    ino: int


@dataclass(eq=False, slots=True)
class KernelIo:
    """How the kernel does I/O on one inode: by page cache or by backing object, never both at a time (fs/fuse/iomode.c)."""

    mode: IoMode | None = None  # of its handles, while there are any that are not `DIRECT`
    handles: int = 0  # how many have that mode
    backing: Backing | None = None  # while the mode is `PASSED`

    def opened(self, mode: IoMode, backing: Backing | None) -> None:
        """The kernel is told of a handle. `DIRECT` ones go with either mode, and do not decide it."""
        if mode is not IoMode.DIRECT:
            self.mode = mode
            self.handles += 1
            self.backing = backing

    def released(self, mode: IoMode | None) -> Backing | None:
        """The kernel has given up a handle, with None one that it never knew; the backing object that it needs no longer."""
        if mode is None or mode is IoMode.DIRECT:
            return None
        self.handles -= 1
        if self.handles:
            return None
        unused, self.mode, self.backing = self.backing, None, None
        return unused


class OwnReplica(NamedTuple):
    """A replica on this server's disks that is open: of which version, and on which volume."""

    object: LocalObject
    version: int
    volume: int


@dataclass(eq=False, slots=True)
class OpenInode:
    """One inode that is open on this mount. While it is registered to be written, its home does not move.

    `lock` is held from the first question of an open, a commit or a close to its last answer. Reads and writes do not take it:
    what they find here may change at each of their awaits, but for `stage` while they have a handle.
    """

    node: Node  # the newest answer of the manager
    stage: Stage = field(default=Stage.ENTERED, init=False)
    lock: trio.Lock = field(default_factory=trio.Lock, init=False)  # held while it is opened, committed or closed
    readers: int = field(default=0, init=False)  # open handles that only read
    writers: int = field(default=0, init=False)  # open handles that may write; none without being registered to write

    home: Object | None = field(default=None, init=False)  # the object at the home, once it was reached
    home_epoch: int = field(default=0, init=False)  # under which `home` was reached, or was last tried to be
    replicas: list[Replica] = field(default_factory=list, init=False)  # all copies, as the manager said last
    located_version: int = field(default=-1, init=False)  # of the node when `replicas` was asked for
    replica: OwnReplica | None = field(default=None, init=False)  # the copy on this server's disks that was read last
    doubted_version: int = field(default=0, init=False)  # of such a copy that its agent was told to look at last
    io: KernelIo = field(default_factory=KernelIo, init=False)

    is_stale: bool = field(default=False, init=False)  # its lease has ended: the manager is asked before `node` is relied on
    is_lost: bool = field(default=False, init=False)  # removed while this mount was cut off: all operations fail
    may_have_capabilities: bool = field(default=True, init=False)  # file capabilities, which a write takes away
    sync_copies: int | None = field(default=None, init=False)  # the policy's; None until it is known
    synced: tuple[int, int | None] | None = field(default=None, init=False)  # the catalog's state that `fsync` last made durable
    was_committed_open: bool = field(default=False, init=False)  # between two commits there may be writes with one change time
    is_commit_due: bool = field(default=False, init=False)  # the settler has it on its list of synced files
    settle_failures: int = field(default=0, init=False)  # in a row; they decide how long the settler waits

    @property
    def ino(self) -> int:
        return self.node.ino

    def _happens(self, event: Event) -> None:
        following = TRANSITIONS[self.stage].get(event)
        if following is None:
            raise RuntimeError(f"inode {self.ino} is {self.stage.value}: it cannot be that {event.value}")
        self.stage = following

    # ------------------------------------------------------------------------------------------------------- stage

    @property
    def is_registered(self) -> bool:
        """Whether the manager counts it as open here."""
        return self.stage in _REGISTERED

    @property
    def is_registered_to_write(self) -> bool:
        """Whether the manager counts it as open for writing here."""
        return self.stage in _TO_WRITE

    def registered(self, opened: Opened, *, to_write: bool) -> None:
        """The manager has answered `Open`. *to_write* must stay set while there are writers."""
        self._happens(Event.REGISTERED_TO_WRITE if to_write else Event.REGISTERED)
        if opened.node.home_epoch != self.node.home_epoch:
            self.leave_home()
        self.node = opened.node
        self.may_have_capabilities = opened.caps
        self.sync_copies = opened.sync_copies
        self.located(opened)

    def presented(self) -> None:
        """A directory that was open without the manager's knowledge is named to it (`fusefs.names.open_directories`)."""
        self._happens(Event.PRESENTED)

    def created(self, home: Object) -> None:
        """It is new, with its (empty) object *home*, and registered to be written by the transaction that made it.

        If the creator was interrupted, the kernel has let others look the name up, who may have opened it in the meantime.
        """
        self._happens(Event.CREATED)
        self.home_epoch = self.node.home_epoch
        if self.home is None:
            self.home = home
        else:
            home.close()
        self.may_have_capabilities = False

    def write_begins(self) -> None:
        """Content is about to be changed. Before it is, so that a commit which begins meanwhile does not count as covering it."""
        if self.stage is not _WRITTEN:
            self._happens(Event.WRITE)

    def commit_begins(self) -> None:
        """The object's size and change time are about to be read, to be committed."""
        self._happens(Event.COMMIT)

    def committed(self, node: Node, *, final: bool) -> None:
        """The catalog has it, as *node*; *final*: as the last commit before `settled`."""
        self._happens(Event.COMMITTED)
        self.node = node
        self.was_committed_open = not final

    def commit_failed(self) -> None:
        """The catalog may have it or not: it is to be committed again."""
        self._happens(Event.COMMIT_FAILED)

    def settled(self) -> None:
        """The manager is about to be told that it is not being written here any more."""
        assert self.writers == 0
        self._happens(Event.SETTLED)
        self.settle_failures = 0

    def left(self) -> None:
        """`OpenFiles` has forgotten it. Whoever still works with it, for a program that waits no longer, fails from now on."""
        assert self.readers + self.writers == 0
        self._happens(Event.LEFT)
        self.leave_home()
        self.replica_failed()

    def check(self) -> None:
        """Raises `Refused` (ESTALE) if it cannot be read or written by this state any more."""
        if self.is_lost:
            raise refused(errno.ESTALE, f"inode {self.ino} was removed while this mount was cut off")
        if self.stage is Stage.LEFT:
            raise refused(errno.ESTALE, f"inode {self.ino} was closed here meanwhile")

    # -------------------------------------------------------------------------------------------------- what is owed

    @property
    def is_idle(self) -> bool:
        """Whether nobody has it open, opens it, or has anything to commit of it: only its registration lingers."""
        return self.stage is Stage.READING and self.handles == 0 and not self.lock.locked()

    @property
    def owes_last_commit(self) -> bool:
        """Whether it is to be committed before it is `settled`. What is lost, or was never reached, has nothing to commit."""
        return self.is_registered_to_write and self.writers == 0 and self.home is not None and not self.is_lost

    @property
    def is_written_past(self) -> bool:
        """Whether it may be written without this mount seeing it."""
        return self.io.mode is IoMode.PASSED and self.is_registered_to_write

    def has_changed(self) -> bool:
        """Whether there is something to commit."""
        if self.stage in _UNCOMMITTED or not self.is_written_past or not isinstance(self.home, LocalObject):
            return self.stage in _UNCOMMITTED
        return self.home.stamp().ctime_ns != self.node.object_ctime_ns

    def node_to_end_with(self) -> Node:
        """What the last commit compares the object with: nothing that was committed meanwhile counts as known."""
        return msgspec.structs.replace(self.node, object_ctime_ns=0) if self.was_committed_open else self.node

    def commit_soon(self) -> bool:
        """It was synced: whether it comes on the settler's list, where it was not yet."""
        was_due, self.is_commit_due = self.is_commit_due, True
        return not was_due

    def commit_comes(self) -> None:
        """The settler has taken it from its list."""
        self.is_commit_due = False

    def settling_failed(self) -> int:
        """How often that was so in a row."""
        self.settle_failures += 1
        return self.settle_failures

    # ------------------------------------------------------------------------------------------------------- handles

    def handle_opened(self, *, write: bool) -> None:
        if write:
            assert self.is_registered_to_write
            self.writers += 1
        else:
            self.readers += 1

    def handle_released(self, *, write: bool) -> None:
        if write:
            self.writers -= 1
        else:
            self.readers -= 1

    @property
    def handles(self) -> int:
        return self.readers + self.writers

    # ------------------------------------------------------------------------------------- what the manager has said

    def answered(self, node: Node) -> None:
        """Takes the manager's answer, unless it may be older than what is known already.

        Answers may overtake one another. Believing too long that a file is dirty only costs speed.
        """
        known = self.node
        if node.home_epoch > known.home_epoch:
            self.node = node
            self.located_version = -1
            self.leave_home()  # the object at the old home is not written any more
        elif node.home_epoch == known.home_epoch and (node.version, node.dirty) >= (known.version, known.dirty):
            self.node = node

    def located(self, opened: Opened) -> None:
        """The manager has said where the copies are of the version that it named in the same answer."""
        self.replicas = opened.replicas
        self.located_version = opened.node.version

    def lease_ended(self) -> None:
        """What is known of it may change from now on."""
        self.is_stale = True

    def asked_anew(self) -> None:
        """The manager is about to be asked. Before it is: who recalls the inode meanwhile makes the answer stale."""
        self.is_stale = False

    def lost(self) -> None:
        """The manager does not know it any more."""
        self.is_lost = True

    def policy_known(self, sync_copies: int | None) -> None:
        """On how many servers an `fsync` waits for copies; None if the manager has to be asked (again)."""
        self.sync_copies = sync_copies

    def catalog_synced(self, known: tuple[int, int | None]) -> None:
        """All that is known in the catalog of this inode is durable there, as of *known*."""
        self.synced = known

    def capabilities_set(self) -> None:
        self.may_have_capabilities = True

    def capabilities_removed(self) -> None:
        self.may_have_capabilities = False

    # ------------------------------------------------------------------------------------------------------- objects

    def reach_begins(self) -> None:
        """The home that `node` names is about to be reached; another one that was reached before is not the home any more."""
        self.leave_home()
        self.home_epoch = self.node.home_epoch

    def reached(self, home: Object) -> None:
        """The home that was the right one at `reach_begins`."""
        self.home = home

    def leave_home(self) -> None:
        """Its object is not to be used any more; one on this disk is closed when the last thread has done with it."""
        if self.home is not None:
            self.home.close()
            self.home = None

    def replica_opened(self, replica: OwnReplica) -> None:
        """In the place of the one that was open, which whoever was faster may have put there meanwhile."""
        self.replica_failed()
        self.replica = replica

    def is_first_doubt(self, version: int) -> bool:
        """Whether nobody has found yet that the copy here is not of this version, as the catalog has it."""
        is_first = self.doubted_version != version
        self.doubted_version = version
        return is_first

    def replica_failed(self) -> None:
        """The copy on this server's disks is not to be read any more."""
        if self.replica is not None:
            self.replica.object.close()
            self.replica = None


@dataclass(eq=False, slots=True)
class Handle:
    """One open file description of the kernel."""

    inode: OpenInode
    write: bool
    append: bool
    durable: bool = False  # what is written through it is synced at once (`O_SYNC`, `O_DSYNC`), as the kernel does with `PASSED`
    mode: IoMode | None = field(default=None, init=False)  # None while the kernel does not know the handle

    def given_to_kernel(self, mode: IoMode, backing: Backing | None = None) -> None:
        """The kernel is told of it, in this step."""
        self.mode = mode
        self.inode.io.opened(mode, backing)

    def given_up_by_kernel(self) -> Backing | None:
        """The backing object that the kernel needs no longer, if there is one."""
        return self.inode.io.released(self.mode)
