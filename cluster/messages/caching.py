"""Leases to cache: grants, recalls, and what people see of them."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value


class Grant(Value, frozen=True):
    """What the session may cache until `access_s` after it asked, or until it is recalled: `docs/leases.md`.

    Of each of `inodes`: its attributes and content, and for a directory, which names it has and has not. Only the answer that
    brings the grant may be cached under it. `serial` grows over all grants and recalls of all terms: a grant is void once a
    recall of the inode with a larger serial has come, and when a manager of a later term has welcomed the session.
    """

    serial: int
    access_s: float
    inodes: list[int]
    alone_s: float = 0.0  # as `access_s`, for being alone with them (docs/held-directories.md); 0: the session is not


class Recall(Reply, frozen=True):
    """The manager wants `inodes` back: nothing of them may be cached any more until it is granted anew.

    To be answered by `RecallDone` with `number` as soon as that is so; who does not answer is waited out.

    `to_look`: others only want to look. The session is alone with these no more, and the manager has all that it recorded; it
    may go on caching them.
    """

    number: int
    serial: int
    inodes: list[int]
    to_look: bool = False


class WatchRecalls(ManagerRequest[Recall], frozen=True):
    """Answered by a stream of `Recall` until the connection ends. Who does not watch is granted nothing to cache.

    Recalls that have not been answered over an earlier connection come again.
    """


class RecallDone(ManagerRequest[Done], frozen=True):
    """Nothing is cached any more of what the recalls `numbers` named.

    `opens`: inodes among them that are open here (for reading) although the manager has not been told yet; it registers
    them as by `Open` with `sequence`.
    """

    numbers: list[int]
    opens: list[int] = []
    sequence: int = 0


class GiveBack(ManagerRequest[Done], frozen=True):
    """Nothing is cached any more of these inodes, unasked: grants with serials up to `serial` are over."""

    inodes: list[int]
    serial: int


class LeaseRow(Value, frozen=True):
    """A lease as people see it."""

    ino: int
    path: bytes
    mode: str  # of `cluster.leases`: read, write, shared or alone
    holder: str  # the server whose mount has it
    home: str  # the server of the home
    home_volume: int
    home_epoch: int  # that its token names, as `version`; without a token, those of now
    version: int
    serial: int  # of the grant
    term: int  # in which it was granted
    renewals: int  # so far
    held_s: float  # since it was granted
    left_s: float  # until the manager takes it for ended
    is_open: bool  # its holder has the inode open


class LeaseCounts(Value, frozen=True):
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


class LeaseRows(Reply, frozen=True):
    """`total` counts all that match, of which at most `limit` are in `leases`."""

    leases: list[LeaseRow]
    total: int
    access_s: float
    counts: LeaseCounts


class ListLeases(ManagerRequest[LeaseRows], frozen=True):
    """Live leases, those that end first at the top; an empty server and inode 0 match all."""

    server: str = ""
    ino: int = 0
    limit: int = 1000
