"""Changes of the namespace: operations, and how they are applied."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Message, Reply
from cluster.messages.caching import Grant
from cluster.messages.values import Content, InodeRange, Node

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Create(Message, frozen=True):
    """Makes an inode and its name. `mode` includes the type; `target` is a symlink's.

    `ino` comes from a range of this session. A regular file gets its home on `home_volume` (0: none, for other types)
    and is born dirty and open for writing by the session, so that no second request is needed before the first byte.
    The catalog applies set-group-id inheritance and default ACLs, and `umask` where the parent has no default ACL.
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
    umask: int = 0
    object_ctime_ns: int = 0  # of an object that was made before the file: until it changes, the file's times are `now_ns`


class CreateUnnamed(Message, frozen=True):
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
    umask: int = 0
    object_ctime_ns: int = 0  # as in `Create`


class Link(Message, frozen=True):
    """Gives an inode another name."""

    ino: int
    parent: int
    name: bytes
    now_ns: int


class Unlink(Message, frozen=True):
    """Removes the name of something that is not a directory. An inode without names lives while it is open anywhere."""

    parent: int
    name: bytes
    now_ns: int


class Rmdir(Message, frozen=True):
    """Removes an empty directory."""

    parent: int
    name: bytes
    now_ns: int


class Rename(Message, frozen=True):
    """rename(2) with the flags `RENAME_NOREPLACE` or `RENAME_EXCHANGE`, or 0."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    flags: int
    now_ns: int


class SetAttr(Message, frozen=True):
    """Changes what is not None; `mode` is permission bits only. Never changes the size: that happens at the home."""

    ino: int
    now_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class SetXattr(Message, frozen=True):
    """setxattr(2)."""

    ino: int
    name: bytes
    value: bytes
    flags: int  # 0, `XATTR_CREATE` (1) or `XATTR_REPLACE` (2)
    now_ns: int
    keeps_sgid: bool = True  # who sets an access control list is root or in the inode's group: it leaves the set-group-id bit


class RemoveXattr(Message, frozen=True):
    ino: int
    name: bytes
    now_ns: int


class Commit(Message, frozen=True):
    """The content of the home's object is now this: version + 1, other replicas stale, copy tasks queued.

    Refused with ESTALE unless the version grows, and with `Fenced` for another home epoch. Committers hold the object's lock
    (`cluster.volume.content`) from `fstat` to the reply, so commits of one file cannot overtake one another.
    """

    ino: int
    home_epoch: int  # under which the object was written
    version: int  # the new one, which the object's record has already; gaps do no harm
    content: Content | None  # None: nothing was written since the last commit, and `version` is ignored
    final: bool  # the committer has no writer left: if no other session has one either, the inode is clean now
    begun: int = 0  # from `BeginCommit`, or 0: who closed after it may have written unseen, so that the inode stays dirty


Operation = Create | CreateUnnamed | Link | Unlink | Rmdir | Rename | SetAttr | SetXattr | RemoveXattr | Commit


class Applied(Reply, frozen=True):
    """One node per operation: the inode it made or changed (for `Unlink`, `Rmdir` and a replacing `Rename`: None)."""

    nodes: list[Node | None]
    tokens: list[bytes] = []  # a lease token for each regular file that was created, in their order
    grant: Grant | None = None
    touched: list[int] = []  # inodes whose names or attributes are others now: what the session keeps of them is out of date
    directories: list[Node] = []  # those in which names were changed, as they are now; none in the answer to a repeat


class Apply(ManagerRequest[Applied], frozen=True):
    """*Mutation.* Operations applied in order in one transaction: all of them, or none and the first failure."""

    request_id: int  # grows within the session
    acknowledged: int  # all replies below this id have been received: the catalog can forget them
    operations: list[Operation]


class Sync(ManagerRequest[Done], frozen=True):
    """Answers when all that was answered before is on the disk of the catalog."""


class TakeInodes(ManagerRequest[InodeRange], frozen=True):
    """Reserves inode numbers; a repeated request may waste a range, which is harmless."""

    count: int
