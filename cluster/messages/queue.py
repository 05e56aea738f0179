"""Agents and their queues."""

from __future__ import annotations

from enum import StrEnum

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value
from cluster.messages.values import Count, Inodes, Replica, Stamp, VolumeState


class TaskOperation(StrEnum):
    """What a task does with an object."""

    COPY = "copy"
    DELETE = "delete"


class TaskState(StrEnum):
    """States of a task: `manager.rules.tasks` has the transitions."""

    WAITING = "waiting"
    DEFERRED = "deferred"
    CLAIMED = "claimed"
    DEAD = "dead"


class Registered(Reply, frozen=True):
    """The catalog's answer to a report of volumes."""

    volumes: list[int]  # their numbers, in the order of the report
    settled_ns: int = 0  # when the server's state changed last: on another value the agent looks for unknown objects
    first_ino: int = 0  # of the catalog's generation: it may have forgotten objects with smaller inode numbers


class RegisterVolumes(ManagerRequest[Registered], frozen=True):
    """An agent's report of its volumes: at its start and every few seconds.

    A volume of the server that is not reported is away.
    """

    address: str  # of its data server, host:port
    volumes: list[VolumeState]
    manager: str = ""  # address of the server's candidate
    release: str = ""  # of Godwit
    problems: list[str] = []  # what is wrong with volumes, for people


class Task(Value, frozen=True):
    """One file operation in the queue of the server that must do it.

    For `copy`: make `volume` hold `version` of `ino`, from one of the sources. For `delete`: move the object on `volume` to the
    trash; it is fine if there is none.
    """

    task: int
    claim: int  # names this attempt: a report with an older claim is ignored
    operation: str  # a `TaskOperation`
    ino: int
    volume: int
    version: int
    size: int = 0
    checksum: bytes = b""  # the BLAKE3 digest to be; empty: nobody has computed it for this version yet
    sources: list[Replica] = []  # best first; the home's is first if it is current
    home_epoch: int = 0  # for the object's record, as the four fields that follow
    path: bytes = b""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    attempts: int = 0  # that have failed
    token: bytes = b""  # a pass to read the first source; for another the agent asks
    is_written: bool = False  # as of `PullObject`


class Tasks(Reply, frozen=True):
    tasks: list[Task]


class ClaimTasks(ManagerRequest[Tasks], frozen=True):
    """Takes up to `limit` waiting tasks of the sender's server; waits up to `wait_s` for the first."""

    limit: int
    wait_s: float


class TaskReport(Value, frozen=True):
    """How an attempt ended."""

    task: int
    claim: int
    outcome: str  # done; changed (not counted), retry (counted), failed (the task is dead)
    error: str = ""  # for people
    version: int = 0  # that was copied, as the next two
    checksum: bytes = b""  # its BLAKE3 digest
    stamp: Stamp | None = None  # of the new object
    source_volume: int = 0  # the source that turned out corrupt, if `source_error` is not empty
    source_error: str = ""


class ReportTasks(ManagerRequest[Done], frozen=True):
    """Ends attempts; a report for a claim that is no longer in force changes nothing."""

    reports: list[TaskReport]


class ExtendClaims(ManagerRequest[Done], frozen=True):
    """The attempts that are still being worked on: their claims run anew."""

    tasks: list[int]


class ListUnsettled(ManagerRequest[Inodes], frozen=True):
    """Dirty inodes whose home is on the sender's server and that no session has open for writing: its agent commits them."""

    limit: int


class FindStrays(ManagerRequest[Inodes], frozen=True):
    """Which of these objects on `volume` no replica row knows, and no number range of a live session covers."""

    volume: int
    inodes: list[int]
    set_aside: int = 0  # objects of which this was asked before and that were moved to `unknown/` since; a repeat counts again


class TaskRow(Reply, frozen=True):
    """A task as people see it."""

    task: int
    server: str  # that must do it
    operation: str  # a `TaskOperation`
    state: str  # a `TaskState`
    ino: int
    path: bytes
    volume: int
    version: int  # that is wanted
    size: int
    attempts: int  # that have failed
    error: str  # of the last one
    queued_ns: int  # when it was queued


class TaskRows(Reply, frozen=True):
    """`total` counts all that match, of which at most `limit` are in `tasks`."""

    tasks: list[TaskRow]
    total: int


class ListTasks(ManagerRequest[TaskRows], frozen=True):
    """Tasks, the oldest first. Empty strings match all."""

    server: str = ""  # whose queue
    state: str = ""  # a `TaskState`
    limit: int = 1000
    task: int = 0  # this one alone, unless 0


class RetryTasks(ManagerRequest[Count], frozen=True):
    """Makes dead and deferred tasks wait again at once, with no attempts counted; task 0 means all of them."""

    task: int = 0
