"""Every message between Godwit's processes.

A request is a `Request[Reply]`; the connection (`cluster.rpc.connection`) carries it with a number and brings back the reply or a
`Failure`. Names are bytes, times are nanoseconds since the epoch, sizes are bytes. Inode, volume and task numbers are
64-bit. Requests marked *mutation* carry a `request_id` and are applied once, however often they are sent; all others may
be repeated freely.

Structs are encoded as msgpack arrays: append fields only at the end, with a default.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

R = TypeVar("R")

PROTOCOL = 1
ROOT_INO = 1
NAME_MAX = 255
XATTR_VALUE_MAX = 65536
SYMLINK_MAX = 4095
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

COPY = "copy"
DELETE = "delete"

WAITING = "waiting"
DEFERRED = "deferred"
CLAIMED = "claimed"
DEAD = "dead"

# States of a move: `manager.rules.moves` has the transitions.
MOVE_PLANNED = "planned"
MOVE_COPYING = "copying"
MOVE_WAITING = "waiting"
MOVE_DELETING = "deleting"
MOVE_DONE = "done"
MOVE_FAILED = "failed"
MOVE_CANCELLED = "cancelled"
MOVE_SKIPPED = "skipped"

# States of a migration. Failed ones are not over: they can be resumed.
PLANNING = "planning"
RUNNING = "running"
PAUSED = "paused"
MIGRATION_DONE = "done"
MIGRATION_FAILED = "failed"
MIGRATION_CANCELLED = "cancelled"

# Kinds of migrations: chosen paths, or all that a server holds.
KIND_MOVE = "move"
KIND_DRAIN = "drain"

# What can be asked of a migration.
PAUSE = "pause"
RESUME = "resume"
CANCEL = "cancel"

# What becomes of a request for a lock.
LOCK_GRANTED = 0
LOCK_HELD = 1
LOCK_WAITING = 2
LOCK_END = 2**63 - 1  # the last byte that a file can have: a lock up to there is one to the end


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all structs on the wire."""


class Request(msgspec.Struct, Generic[R], frozen=True, array_like=True):
    """Base of all requests; `R` is the type of the reply."""


class Failure(Message, frozen=True, array_like=True, tag="failure"):
    """A request that was not carried out: see `cluster.errors` for the kinds."""

    kind: str
    errno: int
    message: str


class Done(Message, frozen=True, array_like=True, tag="done"):
    """The reply that says only that it is done."""


# ---------------------------------------------------------------------------------------------- plain values


class Node(Message, frozen=True, array_like=True, tag="node"):
    """One inode as the catalog knows it.

    While `dirty` is true the content is being written at the home, and `size`, `mtime_ns`, `ctime_ns` and `blocks` are
    those of the last commit: whoever needs the present ones asks the home and lays them over (`cluster.volume.content`).
    `object_ctime_ns` is the change time of the home's object at the last commit, 0 before the first.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    version: int = 0
    dirty: bool = False
    home_volume: int = 0
    home_epoch: int = 0
    object_ctime_ns: int = 0


COOKIE_TERM_BITS = 40  # cookies of entries are `term << COOKIE_TERM_BITS | number`, so that they grow over all terms


class Entry(Message, frozen=True, array_like=True, tag="entry"):
    """One directory entry; `cookie` is its position in the listing: above 2, growing, never used again in this directory."""

    name: bytes
    cookie: int
    node: Node


class Stamp(Message, frozen=True, array_like=True):
    """What identifies the bytes of an object without reading them: any change made through the kernel alters it."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Replica(Message, frozen=True, array_like=True):
    """The content of one inode at one version on one volume. `checksum` is the BLAKE3 digest, empty while unknown."""

    volume: int
    version: int
    stamp: Stamp | None = None
    checksum: bytes = b""


class Volume(Message, frozen=True, array_like=True):
    """One backing directory of one server. Sizes are those of its file system; `device` is equal for volumes that share one.

    `up`: the server's agent was heard just now; `state`: how the server stands (`cluster.membership`).
    `accepts`: new files may get their home there; not while the server is being drained.
    """

    volume: int
    server: str
    path: str
    address: str
    total_bytes: int
    free_bytes: int
    device: str
    up: bool = True
    uuid: str = ""
    state: str = "up"
    accepts: bool = True


class VolumeState(Message, frozen=True, array_like=True):
    """What an agent says of one of its volumes. `uuid` is the one in `volume.toml`."""

    uuid: str
    path: str
    total_bytes: int
    free_bytes: int
    device: str


class Content(Message, frozen=True, array_like=True):
    """The content of a home's object as found by `fstat` at a commit.

    `ctime_ns` is the object's own change time, which only identifies the content (see `Stamp`).
    """

    size: int
    blocks: int
    mtime_ns: int
    ctime_ns: int


# -------------------------------------------------------------------------------------- sessions and the office


class OpenInode(Message, frozen=True, array_like=True):
    """One inode that a session holds open."""

    ino: int
    write: bool


class Welcome(Message, frozen=True, array_like=True, tag="welcome"):
    """The manager's answer to `Hello`. `lost` names the presented inodes that no longer exist; `now_s` is as in `Beat`.

    `managers`: the addresses of the candidates of all servers that belong to the network. `unlocked` names the inodes on which
    the session has no locks any more, although it presented some. It may believe in its locks
    until `locks_s` after the last exchange.
    """

    term: int
    manager: str
    session_timeout_s: float
    lost: list[int]
    now_s: float = 0.0
    managers: list[str] = []
    unlocked: list[int] = []
    locks_s: float = 0.0


class Hello(Request[Welcome], frozen=True, array_like=True, tag="hello"):
    """First request on every connection to a manager.

    `role` is `mount`, `agent` or `cli`; `session` is a random number that the process draws at its start and keeps over
    reconnections; a new session of the same server and role replaces the older one. A mount presents what it holds
    open, the lease tokens for it, the inodes that it or its kernel may still be caching, and the locks of its processes, so that
    a new manager knows them. Of the locks, this is all that it has; requests for others are made anew.
    """

    protocol: int
    cluster: str
    server: str
    role: str
    session: int
    opens: list[OpenInode] = []
    tokens: list[bytes] = []
    caching: list[int] = []
    locks: list[HeldLocks] = []


class Beat(Message, frozen=True, array_like=True, tag="beat"):
    """`now_s` is the manager's monotonic clock: see `cluster.leases.ManagerClock`."""

    term: int
    now_s: float


class Joined(Message, frozen=True, array_like=True, tag="joined"):
    """What a new server's configuration is made of.

    `database` is the catalog's URL, with its password; `manager` and `mount` are settings of these sections on which the
    servers must agree.
    """

    cluster: str
    secret: str
    managers: list[str]
    database: str
    manager: dict[str, int | float]
    mount: dict[str, int | float]


class Elsewhere(Message, frozen=True, array_like=True, tag="elsewhere"):
    """The candidate that was asked is not in office; `address` is that of the one that is, empty if it knows none."""

    address: str


class Join(Request[Joined | Elsewhere], frozen=True, array_like=True, tag="join"):
    """A machine that is no server yet shows its one-time token. Needs no `Hello`.

    `manager` is where its candidate will listen. `machine` is any number of bytes that are the same when the request is
    repeated: a token that was used is good for the same machine a little longer, in case the reply was lost.
    """

    protocol: int
    token: str
    server: str
    manager: str
    machine: bytes


PASSED, PARTLY_PASSED, FALLBACK = "passthrough", "partly", "fallback"


class MountCounts(Message, frozen=True, array_like=True):
    """What a mount process has done since its start: requests that the kernel made of it, that it made of managers, and recalls
    that it obeyed; `caching` is how many inodes it holds a lease to cache at the moment. `files`: whether the kernel reads and
    writes the objects on this server's disks itself (one of the above, or empty while nobody knows), and
    `why_not_passed` why it does not. `problems` are sentences for people."""

    kernel_requests: int = 0
    manager_requests: int = 0
    recalls: int = 0
    caching: int = 0
    why_not_passed: str = ""
    files: str = ""
    problems: list[str] = []


class Heartbeat(Request[Beat], frozen=True, array_like=True, tag="heartbeat"):
    """Keeps the session alive; a mount says what it has done."""

    counts: MountCounts | None = None


# Any candidate answers the following three at once, to anybody of its cluster: without `Hello`, and without being in office.


class Pong(Message, frozen=True, array_like=True, tag="pong"):
    """`in_office`: the sender holds the office in `term`. Else `term` and `address` are of the last holder that it saw.

    `address` is empty when it saw the office vacant, or nothing yet.
    """

    server: str
    term: int
    in_office: bool
    address: str = ""


class Ping(Request[Pong], frozen=True, array_like=True, tag="ping"):
    cluster: str


class Hearing(Message, frozen=True, array_like=True, tag="hearing"):
    """Whether `server` hears a manager; `Unavailable` is answered instead while it cannot know yet."""

    server: str
    hears: bool


class AskHearing(Request[Hearing], frozen=True, array_like=True, tag="askhearing"):
    """The pre-vote: asked by a candidate that has not heard a manager. `term` is the last one that it saw in the catalog."""

    cluster: str
    term: int


class OfficeInfo(Message, frozen=True, array_like=True, tag="officeinfo"):
    """What `godwit manager show` shows of one candidate: the office as `server` sees it.

    `in_office` says that `server` is the manager itself, for `in_office_s` seconds; else `manager`, `term`, `beat` and
    `address` are what it read in the catalog, `manager` being empty if the office is vacant. `hears` is None while it cannot
    know yet. `candidates` are the addresses that it would ask.
    """

    server: str
    in_office: bool
    in_office_s: float
    hears: bool | None
    manager: str
    term: int
    beat: int
    address: str
    candidates: list[str]


class AskOffice(Request[OfficeInfo], frozen=True, array_like=True, tag="askoffice"):
    cluster: str


class StepDown(Request[Done], frozen=True, array_like=True, tag="stepdown"):
    """The manager ends `term` in order, after its reply; done already if it is of another term."""

    term: int


# ------------------------------------------------------------------------------------------- leases to cache


class Grant(Message, frozen=True, array_like=True):
    """What the session may cache until `access_s` after it asked, or until it is recalled: `docs/leases.md`.

    Of each of `inodes`: its attributes and content, and for a directory, which names it has and has not. Only the answer that
    brings the grant may be cached under it. `serial` grows over all grants and recalls of all terms: a grant is void once a
    recall of the inode with a larger serial has come, and when a manager of a later term has welcomed the session.
    """

    serial: int
    access_s: float
    inodes: list[int]


class Recall(Message, frozen=True, array_like=True, tag="recall"):
    """The manager wants `inodes` back: nothing of them may be cached any more until it is granted anew.

    To be answered by `RecallDone` with `number` as soon as that is so; who does not answer is waited out.
    """

    number: int
    serial: int
    inodes: list[int]


class WatchRecalls(Request[Recall], frozen=True, array_like=True, tag="watchrecalls"):
    """Answered by a stream of `Recall` until the connection ends. Who does not watch is granted nothing to cache.

    Recalls that have not been answered over an earlier connection come again.
    """


class RecallDone(Request[Done], frozen=True, array_like=True, tag="recalldone"):
    """Nothing is cached any more of what the recalls `numbers` named.

    `opens`: inodes among them that are open here (for reading) although the manager has not been told yet; it registers
    them as by `Open` with `sequence`.
    """

    numbers: list[int]
    opens: list[int] = []
    sequence: int = 0


class GiveBack(Request[Done], frozen=True, array_like=True, tag="giveback"):
    """Nothing is cached any more of these inodes, unasked: grants with serials up to `serial` are over."""

    inodes: list[int]
    serial: int


# ------------------------------------------------------------------------------------------------------- locks


class LockSpan(Message, frozen=True, array_like=True):
    """A range of bytes that is locked, both ends included: for writing, or shared for reading."""

    start: int
    end: int
    write: bool


class HeldLocks(Message, frozen=True, array_like=True):
    """What one owner on a mount has locked of an inode. `owner` is the kernel's number: a process, or an open file.

    `whole`: by flock(2), which knows no ranges and excludes no record locks. `spans` are sorted and do not overlap.
    """

    ino: int
    whole: bool
    owner: int
    pid: int
    spans: list[LockSpan]


class LockAnswer(Message, frozen=True, array_like=True, tag="lockanswer"):
    """`outcome`: `LOCK_GRANTED`, `LOCK_HELD` by somebody else, or `LOCK_WAITING`: to be asked again, with the same ticket."""

    outcome: int


class SetLock(Request[LockAnswer], frozen=True, array_like=True, tag="setlock"):
    """Locks `span`, in the place of whatever the owner has locked of it.

    `ticket` is a number that the session draws for what it wants; who asks again with it keeps the place in the queue, until the
    session introduces itself again. Without `wait`, the answer is `LOCK_WAITING` only while a new manager does not know all
    locks yet. Refused with EDEADLK (record locks only) or ENOLCK. A repeat finds what is locked already.
    """

    ino: int
    whole: bool
    owner: int
    pid: int
    span: LockSpan
    ticket: int
    wait: bool


class Unlock(Request[Done], frozen=True, array_like=True, tag="unlock"):
    """From `start` to `end` the owner has at most `kept` locked from now on, and does not wait for `ticket` any more."""

    ino: int
    whole: bool
    owner: int
    start: int
    end: int
    kept: list[LockSpan] = []
    ticket: int = 0


class WokenLocks(Message, frozen=True, array_like=True, tag="wokenlocks"):
    """Asking again is worth while for these tickets; `serial` is for the next question."""

    serial: int
    tickets: list[int]


class AwaitLocks(Request[WokenLocks], frozen=True, array_like=True, tag="awaitlocks"):
    """Waits for up to `wait_s` seconds until the session's tickets can be asked for again that it was not told of at `after`."""

    after: int
    wait_s: float


class LockConflict(Message, frozen=True, array_like=True, tag="lockconflict"):
    """A lock that is in the way, of a process of `server`; no span if there is none."""

    span: LockSpan | None
    server: str = ""
    pid: int = 0


class AskConflict(Request[LockConflict], frozen=True, array_like=True, tag="askconflict"):
    """What keeps an owner from setting a record lock."""

    ino: int
    owner: int
    span: LockSpan


# ---------------------------------------------------------------------------------------- namespace: operations


class Create(Message, frozen=True, array_like=True, tag="create"):
    """Makes an inode and its name. `mode` includes the type; `target` is a symlink's.

    `ino` comes from a range of this session. A regular file gets its home on `home_volume` (0: none, for other types)
    and is born dirty and open for writing by the session, so that no second request is needed before the first byte.
    The catalog applies set-group-id inheritance and default ACLs.
    """

    parent: int
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int
    now_ns: int
    home_volume: int = 0
    target: bytes = b""


class CreateUnnamed(Message, frozen=True, array_like=True, tag="createunnamed"):
    """Makes a regular file without a name, as `Create` makes one in `directory`, of which nothing changes.

    `Link` may give it its first name. Until then it is like a file whose last name has gone: it lives while it is open anywhere.
    """

    directory: int
    ino: int
    mode: int
    uid: int
    gid: int
    now_ns: int
    home_volume: int


class Link(Message, frozen=True, array_like=True, tag="link"):
    """Gives an inode another name."""

    ino: int
    parent: int
    name: bytes
    now_ns: int


class Unlink(Message, frozen=True, array_like=True, tag="unlink"):
    """Removes the name of something that is not a directory. An inode without names lives while it is open anywhere."""

    parent: int
    name: bytes
    now_ns: int


class Rmdir(Message, frozen=True, array_like=True, tag="rmdir"):
    """Removes an empty directory."""

    parent: int
    name: bytes
    now_ns: int


class Rename(Message, frozen=True, array_like=True, tag="rename"):
    """rename(2) with the flags `RENAME_NOREPLACE` or `RENAME_EXCHANGE`, or 0."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    now_ns: int


class SetAttr(Message, frozen=True, array_like=True, tag="setattr"):
    """Changes what is not None; `mode` is permission bits only. Never changes the size: that happens at the home."""

    ino: int
    now_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class SetXattr(Message, frozen=True, array_like=True, tag="setxattr"):
    """`flags`: 0, `XATTR_CREATE` (1) or `XATTR_REPLACE` (2). `keeps_sgid`: whether an access control list may leave the
    set-group-id bit: who sets it is root, or in the inode's group."""

    ino: int
    name: bytes
    value: bytes
    flags: int
    now_ns: int
    keeps_sgid: bool = True


class RemoveXattr(Message, frozen=True, array_like=True, tag="removexattr"):
    ino: int
    name: bytes
    now_ns: int


class Commit(Message, frozen=True, array_like=True, tag="commit"):
    """The content of the home's object is now this: version + 1, other replicas stale, copy tasks queued.

    `version` is the new version, which the committer has written into the object's record; it must be larger than the
    catalog's (gaps do no harm), else the commit is refused with ESTALE. `content` None means that nothing was written
    since the last commit; `version` is ignored then. `final` says that the committing process has no writer left; the
    catalog clears `dirty` if no session but the committer's has the inode open for writing. Refused with `Fenced` for
    another home epoch. Committers hold the object's lock (`cluster.volume.content`) from `fstat` to the reply, so commits of
    one file cannot overtake one another.

    `begun` is the number from `BeginCommit` if the committer asked before it looked at the object, else 0. A writer on
    another server that closed after that may have written after the committer looked: then `dirty` stays.
    """

    ino: int
    home_epoch: int
    version: int
    content: Content | None
    final: bool
    begun: int = 0


Operation = Create | CreateUnnamed | Link | Unlink | Rmdir | Rename | SetAttr | SetXattr | RemoveXattr | Commit


class Applied(Message, frozen=True, array_like=True, tag="applied"):
    """One node per operation: the inode it made or changed (for `Unlink`, `Rmdir` and a replacing `Rename`: None).

    `tokens`: a lease token for each regular file that was created, in their order. `touched`: every inode whose names or
    attributes are others now: nodes of them that the session keeps are out of date. `directories`: those in which names were
    changed, as they are now; none in the answer to a repeat.
    """

    nodes: list[Node | None]
    tokens: list[bytes] = []
    grant: Grant | None = None
    touched: list[int] = []
    directories: list[Node] = []


class Apply(Request[Applied], frozen=True, array_like=True, tag="apply"):
    """*Mutation.* Operations applied in order in one transaction: all of them, or none and the first failure.

    `request_id` grows within the session; `acknowledged` is the largest id below which all replies have been received,
    so that the catalog can forget them.
    """

    request_id: int
    acknowledged: int
    operations: list[Operation]


class Sync(Request[Done], frozen=True, array_like=True, tag="sync"):
    """Answers when all that was answered before is on the disk of the catalog."""


# ------------------------------------------------------------------------------------------- namespace: questions


class Found(Message, frozen=True, array_like=True, tag="found"):
    """`node` is None if the directory has no such name. `grant` may be for the directory, the node, or both."""

    node: Node | None
    grant: Grant | None = None


class Lookup(Request[Found], frozen=True, array_like=True, tag="lookup"):
    parent: int
    name: bytes


class Described(Message, frozen=True, array_like=True, tag="described"):
    node: Node
    grant: Grant | None = None


class GetAttr(Request[Described], frozen=True, array_like=True, tag="getattr"):
    ino: int


class Begun(Message, frozen=True, array_like=True, tag="begun"):
    """`number` counts the writers that have closed so far: what they wrote is in the object that is looked at now.

    `orderly`: whoever wrote it since the last commit has closed it; else a mount went away with it open, and may write it still.
    """

    node: Node
    number: int
    orderly: bool = False


class BeginCommit(Request[Begun], frozen=True, array_like=True, tag="begincommit"):
    """What a home's agent asks, holding the object's lock, before it looks at the object that it is to commit."""

    ino: int


class Parent(Message, frozen=True, array_like=True, tag="parent"):
    ino: int


class GetParent(Request[Parent], frozen=True, array_like=True, tag="getparent"):
    """The directory that holds a directory (the root's is the root)."""

    ino: int


class Listing(Message, frozen=True, array_like=True, tag="listing"):
    """A page of a directory in the order of the cookies; `end` when nothing follows.

    `grant` may be for the directory and for any of the entries.
    """

    entries: list[Entry]
    end: bool
    grant: Grant | None = None


class ReadDir(Request[Listing], frozen=True, array_like=True, tag="readdir"):
    """The entries whose cookie is greater than `after`, at most `limit` (bounded by the manager)."""

    ino: int
    after: int
    limit: int


class Blob(Message, frozen=True, array_like=True, tag="blob"):
    value: bytes


class ReadLink(Request[Blob], frozen=True, array_like=True, tag="readlink"):
    ino: int


class GetXattr(Request[Blob], frozen=True, array_like=True, tag="getxattr"):
    ino: int
    name: bytes


class Names(Message, frozen=True, array_like=True, tag="names"):
    names: list[bytes]


class ListXattr(Request[Names], frozen=True, array_like=True, tag="listxattr"):
    ino: int


class Space(Message, frozen=True, array_like=True, tag="space"):
    """What `statfs` answers. Bytes are divided by the root policy's number of copies; volumes on one device count once."""

    total_bytes: int
    free_bytes: int
    inodes: int


class GetSpace(Request[Space], frozen=True, array_like=True, tag="getspace"):
    """The size of the whole network."""


class InodeRange(Message, frozen=True, array_like=True, tag="inoderange"):
    """`count` inode numbers from `first` on, which belong to the session for good."""

    first: int
    count: int


class TakeInodes(Request[InodeRange], frozen=True, array_like=True, tag="takeinodes"):
    """Reserves inode numbers; a repeated request may waste a range, which is harmless."""

    count: int


class Volumes(Message, frozen=True, array_like=True, tag="volumes"):
    volumes: list[Volume]


class ListVolumes(Request[Volumes], frozen=True, array_like=True, tag="listvolumes"):
    """All volumes with their servers' addresses."""


# ------------------------------------------------------------------------------------------------ opening files


class Opened(Message, frozen=True, array_like=True, tag="opened"):
    """What a mount needs to do I/O on an inode.

    `replicas` holds the current ones only. `caps` says whether the inode has a `security.capability` attribute.
    `wanted_copies` and `sync_copies` are those of the policy in force. `token` is the lease that `Open` grants, else empty.
    """

    node: Node
    replicas: list[Replica]
    caps: bool
    wanted_copies: int
    sync_copies: int
    token: bytes = b""
    grant: Grant | None = None


class Open(Request[Opened], frozen=True, array_like=True, tag="open"):
    """Registers that the session holds the inode open, for writing too if `write`.

    Opening for writing marks the inode dirty in the catalog before the reply. `sequence` grows within the session: an
    `Open` is in force until a `Close` of the same inode with a larger sequence. May be repeated.
    """

    ino: int
    write: bool
    sequence: int


class Closing(Message, frozen=True, array_like=True):
    """The session does not hold the inode open any more (or, with `still_open`, no longer for writing)."""

    ino: int
    sequence: int
    still_open: bool = False


class Close(Request[Done], frozen=True, array_like=True, tag="close"):
    """Takes back registrations made before (by sequence); sent in batches.

    The home's own mount commits before it; a mount that asks another server's agent to commit closes first.
    """

    closings: list[Closing]


class Locate(Request[Opened], frozen=True, array_like=True, tag="locate"):
    """As `Open`, but registers nothing."""

    ino: int


class LeaseTokens(Message, frozen=True, array_like=True, tag="leasetokens"):
    """Sealed tokens (`cluster.leases`) in the order of the request; empty for an inode that does not exist."""

    tokens: list[bytes]
    grant: Grant | None = None


class AskLeases(Request[LeaseTokens], frozen=True, array_like=True, tag="askleases"):
    """Grants or renews leases, many at once; to write if the session has the inode open for writing.

    An agent gets passes to read what it copies, which nobody keeps account of.
    """

    inodes: list[int]


class AwaitCopies(Request[Done], frozen=True, array_like=True, tag="awaitcopies"):
    """Answers when `copies` replicas (the home's included) hold at least `version`; `Unavailable` after `timeout_s`."""

    ino: int
    version: int
    copies: int
    timeout_s: float


# ----------------------------------------------------------------------------------------------- agents and queues


class Registered(Message, frozen=True, array_like=True, tag="registered"):
    """The volume numbers, in the order of the request.

    `settled_ns`: when the catalog last changed how the server stands. An agent that sees another value than before looks for
    objects that the catalog does not know.
    """

    volumes: list[int]
    settled_ns: int = 0


class RegisterVolumes(Request[Registered], frozen=True, array_like=True, tag="registervolumes"):
    """An agent's report of its volumes: at its start and every few seconds. `address` is its data server's `host:port`.

    `manager`: the address of the server's candidate. `release`: of Godwit. `problems`: what is wrong with volumes, for people.
    """

    address: str
    volumes: list[VolumeState]
    manager: str = ""
    release: str = ""
    problems: list[str] = []


class Task(Message, frozen=True, array_like=True):
    """One file operation in the queue of the server that must do it.

    For `copy`: make `volume` hold `version` of `ino`, from one of `sources` (best first; the home's, if current, is
    first); `checksum` is the expected BLAKE3 digest, or empty when nobody has computed it for this version yet.
    For `delete`: move the object on `volume` to the trash; it is fine if there is none.
    `claim` names this attempt; a report with an older claim is ignored. `token` is a pass to read the sources of a copy.
    `is_written`: as of `PullObject`.
    """

    task: int
    claim: int
    operation: str
    ino: int
    volume: int
    version: int
    size: int = 0
    checksum: bytes = b""
    sources: list[Replica] = []
    home_epoch: int = 0
    path: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    attempts: int = 0
    token: bytes = b""
    is_written: bool = False


class Tasks(Message, frozen=True, array_like=True, tag="tasks"):
    tasks: list[Task]


class ClaimTasks(Request[Tasks], frozen=True, array_like=True, tag="claimtasks"):
    """Takes up to `limit` waiting tasks of the sender's server; waits up to `wait_s` for the first."""

    limit: int
    wait_s: float


class TaskReport(Message, frozen=True, array_like=True):
    """How an attempt ended.

    `outcome` is `done`, `changed` (the source was written meanwhile: try again, it does not count), `retry` (count it and
    try again after a back-off; after too many the task is dead) or `failed` (dead at once). For a copy that is done,
    `version` is what was copied, `checksum` its digest, `stamp` the new object's. `source_volume` and a non-empty
    `source_error` say that a source turned out corrupt.
    """

    task: int
    claim: int
    outcome: str
    error: str = ""
    version: int = 0
    checksum: bytes = b""
    stamp: Stamp | None = None
    source_volume: int = 0
    source_error: str = ""


class ReportTasks(Request[Done], frozen=True, array_like=True, tag="reporttasks"):
    """Ends attempts; a report for a claim that is no longer in force changes nothing."""

    reports: list[TaskReport]


class ExtendClaims(Request[Done], frozen=True, array_like=True, tag="extendclaims"):
    """The attempts that are still being worked on: their claims run anew."""

    tasks: list[int]


class Inodes(Message, frozen=True, array_like=True, tag="inodes"):
    inodes: list[int]


class ListUnsettled(Request[Inodes], frozen=True, array_like=True, tag="listunsettled"):
    """Dirty inodes whose home is on the sender's server and that no session has open for writing: its agent commits them."""

    limit: int


class FindStrays(Request[Inodes], frozen=True, array_like=True, tag="findstrays"):
    """Which of these objects on `volume` no replica row knows, and no number range of a live session covers."""

    volume: int
    inodes: list[int]


class ForsakenObject(Message, frozen=True, array_like=True):
    """The object of a home on a server that was declared lost: its file fell back to an older replica.

    `stamp`: that of its last commit, if the file has that content still; else what the object holds is new in any case, but
    for an object of `kept_size` bytes with the digest `kept_checksum` (empty: not known). `conflict`: the inode that it becomes,
    0 until that was asked for.
    """

    volume: int
    ino: int
    mode: int
    uid: int
    gid: int
    stamp: Stamp | None
    kept_size: int
    kept_checksum: bytes
    conflict: int


class ForsakenObjects(Message, frozen=True, array_like=True, tag="forsakenobjects"):
    objects: list[ForsakenObject]


class ListForsaken(Request[ForsakenObjects], frozen=True, array_like=True, tag="listforsaken"):
    """The first of the forsaken objects on the volumes of the sender's server."""


class KeepForsaken(Request[InodeRange], frozen=True, array_like=True, tag="keepforsaken"):
    """The object holds what nobody else has: which inode it is to become. The same one each time."""

    volume: int
    ino: int


class NewName(Message, frozen=True, array_like=True, tag="newname"):
    path: bytes


class NameForsaken(Request[NewName], frozen=True, array_like=True, tag="nameforsaken"):
    """The object is that of its new inode now, with this content: it gets its conflict name, and is forsaken no more.

    ENOENT if it is not (any more): a repeat finds it done.
    """

    volume: int
    ino: int
    content: Content


class ForgetForsaken(Request[Done], frozen=True, array_like=True, tag="forgetforsaken"):
    """The object is not there, or holds nothing new. ENOENT as for `NameForsaken`."""

    volume: int
    ino: int


# -------------------------------------------------------------------------------------- data: served by every agent


class ObjectStat(Message, frozen=True, array_like=True, tag="objectstat"):
    content: Content


class StatObject(Request[ObjectStat], frozen=True, array_like=True, tag="statobject"):
    """The present size and times of the home's object.

    All data requests carry the requester's sealed lease token for the inode. They are refused with `TokenRefused` if it is
    forged, has expired, or is for another inode or mode, and with `Fenced` if it is of an older home epoch than the object.
    """

    ino: int
    volume: int
    token: bytes


class CreateObject(Request[ObjectStat], frozen=True, array_like=True, tag="createobject"):
    """Makes an empty object, for a server whose own volumes take no new files. Harmless if it is there and empty.

    The only request without a token: the catalog does not know the inode yet, whose number belongs to the requester.
    """

    ino: int
    volume: int


class Data(Message, frozen=True, array_like=True, tag="data"):
    """The bytes are in the frame's body."""


class ReadObject(Request[Data], frozen=True, array_like=True, tag="readobject"):
    """At most `length` bytes from `offset`; fewer only at the end of the object.

    With `stamp`, a replica that is not the home is read: refused with `Changed` unless the object's stamp is this.
    """

    ino: int
    volume: int
    token: bytes
    offset: int
    length: int
    stamp: Stamp | None = None


class Written(Message, frozen=True, array_like=True, tag="written"):
    count: int


class WriteObject(Request[Written], frozen=True, array_like=True, tag="writeobject"):
    """Writes the frame's body at `offset`, or at the end with `append`. Not repeated by the connection when it breaks."""

    ino: int
    volume: int
    token: bytes
    offset: int
    append: bool = False


class TruncateObject(Request[Done], frozen=True, array_like=True, tag="truncateobject"):
    ino: int
    volume: int
    token: bytes
    size: int


class AllocateObject(Request[Done], frozen=True, array_like=True, tag="allocateobject"):
    """fallocate(2) of the home's object."""

    ino: int
    volume: int
    token: bytes
    mode: int
    offset: int
    length: int


class Position(Message, frozen=True, array_like=True, tag="position"):
    """`offset` is None where nothing of what was sought follows."""

    offset: int | None


class SeekObject(Request[Position], frozen=True, array_like=True, tag="seekobject"):
    """Where data or a hole of the home's object begins; `whence` is lseek's `SEEK_DATA` or `SEEK_HOLE`."""

    ino: int
    volume: int
    token: bytes
    offset: int
    whence: int


class CopyObject(Request[Written], frozen=True, array_like=True, tag="copyobject"):
    """Writes at `offset` what a read of `source`, an object of the same server, would give; maybe less of it.

    Refused with EXDEV if the source cannot be read like that, for whatever reason: then it is read and written as usual.
    """

    ino: int
    volume: int
    token: bytes
    offset: int
    source: ReadObject


class SyncObject(Request[Done], frozen=True, array_like=True, tag="syncobject"):
    """fsync of the home's object."""

    ino: int
    volume: int
    token: bytes


class SetObjectTimes(Request[Node], frozen=True, array_like=True, tag="setobjecttimes"):
    """Sets the times of a file that is being written: under the object's lock, in the catalog and on the object."""

    ino: int
    volume: int
    token: bytes
    atime_ns: int | None
    mtime_ns: int | None


class CommitObject(Request[Node], frozen=True, array_like=True, tag="commitobject"):
    """Asks the home's agent to commit the object's present content to the catalog; the reply is the catalog's node.

    `final`: the asking mount has no writer left.
    """

    ino: int
    volume: int
    token: bytes
    final: bool


SUM_BLOCK_BYTES = 128 * 1024
"""What `SumBlocks` gives a digest for; the last block of an object may be shorter."""
SUM_BYTES = 32
RANGES_MAX = 16 * 1024


class PullHeader(Message, frozen=True, array_like=True, tag="pullheader"):
    """First reply to `PullObject` and `SumBlocks`; `size` bytes follow in `Chunk` replies."""

    size: int


class Chunk(Message, frozen=True, array_like=True, tag="chunk"):
    """The next bytes, in the body."""


class PullEnd(Message, frozen=True, array_like=True, tag="pullend"):
    """All bytes were sent and the object did not change meanwhile; `checksum` is the BLAKE3 digest of what was sent.

    In the answer to `SumBlocks` it is the digest of the object.
    """

    checksum: bytes


class PullObject(Request[PullEnd], frozen=True, array_like=True, tag="pullobject"):
    """The content of a replica: `PullHeader`, `Chunk` …, `PullEnd`, or a `Failure` at any point.

    The source serves it only if its object's stamp is `stamp` before and after: otherwise `Changed` if a newer version is
    being written there, else `Corrupt`. `ranges`: these pairs of offset and length only, at most `RANGES_MAX`, ascending.
    `is_written`: somebody may have had it open for writing without a break since before that version.
    """

    ino: int
    volume: int
    version: int
    stamp: Stamp
    token: bytes
    ranges: list[tuple[int, int]] = []
    is_written: bool = False


PULLS_MAX = 64
PULLED_MAX_BYTES = 2 * 1024 * 1024


class Pulled(Message, frozen=True, array_like=True, tag="pulled"):
    """For each object its end or why it is not sent. The contents of the former are in the body, one behind the other."""

    results: list[PullEnd | Failure]


class PullObjects(Request[Pulled], frozen=True, array_like=True, tag="pullobjects"):
    """Small replicas on one volume, each as `PullObject` would give it: at most `PULLS_MAX`, together `PULLED_MAX_BYTES` long."""

    pulls: list[PullObject]


class SumBlocks(Request[PullEnd], frozen=True, array_like=True, tag="sumblocks"):
    """As `PullObject`, but the BLAKE3 digests of the replica's blocks, one behind the other, in the place of its content."""

    ino: int
    volume: int
    version: int
    stamp: Stamp
    token: bytes
    is_written: bool = False


# ------------------------------------------------------------------------------------------------- administration


class ServerInfo(Message, frozen=True, array_like=True):
    """`last_seen_s` is the age of its last heartbeat; -1 when this manager has never heard it.

    `state` since `since_ns` (0: not known); `wanted_empty`: it is being drained, or will be when it is back. `manager`: its
    candidate's address. `counts`: what its mount last said of itself; None while there is none.
    """

    server: str
    roles: list[str]
    volumes: list[Volume]
    waiting_tasks: int
    dead_tasks: int
    last_seen_s: float
    state: str = "up"
    since_ns: int = 0
    wanted_empty: bool = False
    manager: str = ""
    release: str = ""
    problems: list[str] = []
    counts: MountCounts | None = None


class Status(Message, frozen=True, array_like=True, tag="status"):
    cluster: str
    manager: str
    term: int
    catalog: str
    servers: list[ServerInfo]
    inodes: int
    waiting_tasks: int
    claimed_tasks: int
    dead_tasks: int
    space: Space
    forsaken: int = 0
    conflicts: int = 0


class GetStatus(Request[Status], frozen=True, array_like=True, tag="getstatus"):
    """Everything `godwit status` and `godwit servers ls` show."""


class TaskRow(Message, frozen=True, array_like=True, tag="taskrow"):
    """A task as people see it. `state` is waiting, deferred (backing off), claimed or dead."""

    task: int
    server: str
    operation: str
    state: str
    ino: int
    path: bytes
    volume: int
    version: int
    size: int
    attempts: int
    error: str
    queued_ns: int


class TaskRows(Message, frozen=True, array_like=True, tag="taskrows"):
    """`total` counts all that match, of which at most `limit` are in `tasks`."""

    tasks: list[TaskRow]
    total: int


class ListTasks(Request[TaskRows], frozen=True, array_like=True, tag="listtasks"):
    """Empty strings match all."""

    server: str = ""
    state: str = ""
    limit: int = 1000
    task: int = 0


class Count(Message, frozen=True, array_like=True, tag="count"):
    count: int


class RetryTasks(Request[Count], frozen=True, array_like=True, tag="retrytasks"):
    """Makes dead and deferred tasks wait again at once, with no attempts counted; task 0 means all of them."""

    task: int = 0


class LeaseRow(Message, frozen=True, array_like=True):
    """A lease as people see it. `left_s`: until the manager takes it for ended; `is_open`: its holder has the inode open."""

    ino: int
    path: bytes
    mode: str
    holder: str
    home: str
    home_volume: int
    home_epoch: int
    version: int
    serial: int
    term: int
    renewals: int
    held_s: float
    left_s: float
    is_open: bool


class LeaseCounts(Message, frozen=True, array_like=True):
    """Of this term. `expired`: leases that ran out, unused or unheard; `refused`: asked for inodes that are not there.

    `recalled`: leases that were called back; `waited_out`: of these, how many ended by time instead of an answer. `given_back`:
    unasked. `requests`: of mounts to this manager, of any kind.
    """

    granted: int
    renewed: int
    expired: int
    refused: int
    recalled: int = 0
    waited_out: int = 0
    given_back: int = 0
    requests: int = 0


class LeaseRows(Message, frozen=True, array_like=True, tag="leaserows"):
    """`total` counts all that match, of which at most `limit` are in `leases`."""

    leases: list[LeaseRow]
    total: int
    access_s: float
    counts: LeaseCounts


class ListLeases(Request[LeaseRows], frozen=True, array_like=True, tag="listleases"):
    """Live leases, those that end first at the top; an empty server and inode 0 match all."""

    server: str = ""
    ino: int = 0
    limit: int = 1000


class LockRow(Message, frozen=True, array_like=True):
    """A lock as people see it, held or waited for, by a process of `holder`; `whole` as in `HeldLocks`."""

    ino: int
    path: bytes
    whole: bool
    span: LockSpan
    holder: str
    pid: int
    waiting: bool
    since_s: float


class LockRows(Message, frozen=True, array_like=True, tag="lockrows"):
    """`total` counts all that match, of which at most `limit` are in `locks`."""

    locks: list[LockRow]
    total: int


class ListLocks(Request[LockRows], frozen=True, array_like=True, tag="listlocks"):
    """Locks and who waits for them, by inode; an empty server and inode 0 match all."""

    server: str = ""
    ino: int = 0
    limit: int = 1000


class PolicyRow(Message, frozen=True, array_like=True, tag="policyrow"):
    """A directory's policy. `ino` is where it is set; for an inherited one, an ancestor of what was asked for."""

    ino: int
    path: bytes
    copies: int
    sync_copies: int


class PolicyRows(Message, frozen=True, array_like=True, tag="policyrows"):
    policies: list[PolicyRow]


class GetPolicy(Request[PolicyRow], frozen=True, array_like=True, tag="getpolicy"):
    """The policy in force for a file or directory."""

    ino: int


class SetPolicy(Request[PolicyRow], frozen=True, array_like=True, tag="setpolicy"):
    """Sets a directory's policy, or with `clear` makes it inherit again; files below are brought to it in the background."""

    ino: int
    copies: int = 0
    sync_copies: int = 0
    clear: bool = False


class ListPolicies(Request[PolicyRows], frozen=True, array_like=True, tag="listpolicies"):
    """All directories that have a policy of their own."""


class ReplicaRow(Message, frozen=True, array_like=True):
    """`fault` is what a reader found wrong with this replica; empty if nothing. `state`: how its server stands."""

    volume: int
    server: str
    path: str
    version: int
    current: bool
    home: bool
    checksum: bytes
    up: bool
    fault: str = ""
    state: str = "up"


class Where(Message, frozen=True, array_like=True, tag="where"):
    """Where an inode's content is. `pending` are its tasks. `forsaken`: servers that may have another content that was given
    up when they were declared lost."""

    node: Node
    path: bytes
    replicas: list[ReplicaRow]
    policy: PolicyRow
    pending: list[TaskRow]
    writers: list[str]
    forsaken: list[str] = []


class GetWhere(Request[Where], frozen=True, array_like=True, tag="getwhere"):
    ino: int


class Holdings(Message, frozen=True, array_like=True):
    """What a server's volumes hold. `sole`: files whose only current replica on a server that counts is there; `homes`: files
    whose home is there, of which `dirty` may have content that no replica has."""

    replicas: int
    current: int
    bytes: int
    homes: int
    dirty: int
    sole: int


class ServerDetails(Message, frozen=True, array_like=True, tag="serverdetails"):
    """`tasks` are the numbers of tasks in its queue by state; `leases` how many tokens its mount holds.

    `forsaken`: objects on its volumes whose files fell back to an older content; `conflicts`: some paths of files that came
    from such objects.
    """

    info: ServerInfo
    holdings: Holdings
    tasks: dict[str, int]
    is_manager: bool
    leases: int = 0
    forsaken: int = 0
    conflicts: list[bytes] = []


class GetServer(Request[ServerDetails], frozen=True, array_like=True, tag="getserver"):
    """Everything about one server. Takes time in proportion to the replicas that it holds."""

    server: str


class RemoveServer(Request[Count], frozen=True, array_like=True, tag="removeserver"):
    """The server leaves the network; the reply counts the replicas that were forgotten. May be repeated.

    Refused while a home or the only current replica of a file is there, and for a server that is not down, while it holds
    anything.
    """

    server: str


class LosePlan(Message, frozen=True, array_like=True, tag="loseplan"):
    """What declaring a server lost means for the files that have their home there, in numbers of files and bytes.

    `whole`: others have their content. `older`: others have an older one, which they fall back to; what the server has is
    kept under conflict names if it comes back. `only`: nobody else has anything of them, they stay where they are; `paths`
    are some of these.
    """

    server: str
    whole: int
    whole_bytes: int
    older: int
    older_bytes: int
    only: int
    only_bytes: int
    paths: list[bytes]


class LoseServer(Request[LosePlan], frozen=True, array_like=True, tag="loseserver"):
    """Gives a server up for lost that is down, or with `force` one that is silent; with `dry_run` only says what follows.

    May be repeated. Its files fall back in the background.
    """

    server: str
    dry_run: bool = False
    force: bool = False


class Added(Message, frozen=True, array_like=True, tag="added"):
    """`outcome`: `invited` (with `token`, which `server` may use once within `expires_s`), `readmitted` or `undrained`.

    `managers`: where candidates are reached.
    """

    server: str
    outcome: str
    cluster: str
    managers: list[str]
    token: str = ""
    expires_s: float = 0.0


class AddServer(Request[Added], frozen=True, array_like=True, tag="addserver"):
    """Invites a server, re-admits one that has left, or takes the draining of one back."""

    server: str
    expires_s: float = 3600.0


# ----------------------------------------------------------------------------------------------------- migrations


class MoveCount(Message, frozen=True, array_like=True):
    """How many moves of a migration are in a state; `size` is the bytes of their files when they were planned."""

    state: str
    files: int
    size: int


class MigrationRow(Message, frozen=True, array_like=True, tag="migrationrow"):
    """A migration as people see it.

    `target` is empty where placement chooses; `paths` are those that were asked for. `planned`: every file has its move.
    `problem` is why one of its moves failed or does not go on. `elapsed_s` is since the start, by the manager's clock.
    """

    migration: int
    kind: str
    state: str
    source: str
    target: str
    paths: list[bytes]
    planned: bool
    counts: list[MoveCount]
    problem: str
    created_ns: int
    ended_ns: int
    elapsed_s: float


class MigrationRows(Message, frozen=True, array_like=True, tag="migrationrows"):
    migrations: list[MigrationRow]


class StartMigration(Request[MigrationRow], frozen=True, array_like=True, tag="startmigration"):
    """Moves the replicas of `inodes` and of all that is below them from one server to another.

    `paths` are their names as they were asked for, in the same order. `token` is a random number above 0: a repeat of the
    request finds the migration that was started already.
    """

    inodes: list[int]
    paths: list[bytes]
    source: str
    target: str
    token: int


class DrainServer(Request[MigrationRow], frozen=True, array_like=True, tag="drainserver"):
    """Marks a server as wanted empty and moves away all that it holds; a drain that is not over yet goes on."""

    server: str


class MigrationPlan(Message, frozen=True, array_like=True, tag="migrationplan"):
    """What a migration would do. `problems` are some of the files that cannot be moved, with why; `in_use` ones wait.

    `truncated`: there are more files than were looked at.
    """

    files: int
    size: int
    problem_files: int
    problem_size: int
    problems: list[tuple[bytes, str]]
    in_use: int
    truncated: bool


class PlanMigration(Request[MigrationPlan], frozen=True, array_like=True, tag="planmigration"):
    """What `StartMigration` would do; changes nothing."""

    inodes: list[int]
    source: str
    target: str


class ListMigrations(Request[MigrationRows], frozen=True, array_like=True, tag="listmigrations"):
    """The newest `limit` migrations, or one (empty if there is none of that number)."""

    migration: int = 0
    limit: int = 100


class ChangeMigration(Request[MigrationRow], frozen=True, array_like=True, tag="changemigration"):
    """`action` is `pause`, `resume` or `cancel`; each is harmless when it has been done already."""

    migration: int
    action: str


class MoveRow(Message, frozen=True, array_like=True):
    """One move as people see it. `target` and `target_server` are 0 and empty where placement chooses, or not chosen yet."""

    ino: int
    path: bytes
    source: int
    source_server: str
    target: int
    target_server: str
    state: str
    size: int
    error: str
    changed_ns: int


class MoveRows(Message, frozen=True, array_like=True, tag="moverows"):
    """`total` counts all that match, of which at most `limit` are in `moves`."""

    moves: list[MoveRow]
    total: int


class ListMoves(Request[MoveRows], frozen=True, array_like=True, tag="listmoves"):
    """The moves of a migration; an empty `state` matches all."""

    migration: int
    state: str = ""
    limit: int = 100


# ------------------------------------------------------------------------------------------------------- unions

ManagerRequest = (
    Hello
    | Join
    | Heartbeat
    | Apply
    | Sync
    | Lookup
    | GetAttr
    | BeginCommit
    | GetParent
    | ReadDir
    | ReadLink
    | GetXattr
    | ListXattr
    | GetSpace
    | TakeInodes
    | ListVolumes
    | Open
    | Close
    | Locate
    | AskLeases
    | WatchRecalls
    | RecallDone
    | GiveBack
    | SetLock
    | Unlock
    | AskConflict
    | AwaitLocks
    | AwaitCopies
    | RegisterVolumes
    | ClaimTasks
    | ReportTasks
    | ExtendClaims
    | ListUnsettled
    | FindStrays
    | ListForsaken
    | KeepForsaken
    | NameForsaken
    | ForgetForsaken
    | GetStatus
    | ListTasks
    | RetryTasks
    | ListLeases
    | ListLocks
    | GetPolicy
    | SetPolicy
    | ListPolicies
    | GetWhere
    | StartMigration
    | DrainServer
    | PlanMigration
    | ListMigrations
    | ChangeMigration
    | ListMoves
    | Ping
    | AskHearing
    | AskOffice
    | StepDown
    | GetServer
    | RemoveServer
    | LoseServer
    | AddServer
)

AgentRequest = (
    StatObject
    | CreateObject
    | ReadObject
    | WriteObject
    | TruncateObject
    | AllocateObject
    | SeekObject
    | CopyObject
    | SyncObject
    | SetObjectTimes
    | CommitObject
    | PullObject
    | PullObjects
    | SumBlocks
)

Reply = (
    Failure
    | Done
    | ForsakenObjects
    | NewName
    | LosePlan
    | Node
    | Found
    | Described
    | Recall
    | Welcome
    | Joined
    | Elsewhere
    | Beat
    | Applied
    | Begun
    | Parent
    | Listing
    | Blob
    | Names
    | Space
    | InodeRange
    | Volumes
    | Opened
    | LeaseTokens
    | Registered
    | Tasks
    | Inodes
    | ObjectStat
    | Data
    | Written
    | Position
    | PullHeader
    | Chunk
    | PullEnd
    | Pulled
    | Status
    | TaskRow
    | TaskRows
    | Count
    | LeaseRows
    | LockAnswer
    | LockConflict
    | WokenLocks
    | LockRows
    | PolicyRow
    | PolicyRows
    | Where
    | MigrationRow
    | MigrationRows
    | MigrationPlan
    | MoveRows
    | Pong
    | Hearing
    | OfficeInfo
    | ServerDetails
    | Added
)
