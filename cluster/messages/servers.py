"""Servers: who they are, that one comes, leaves or is lost."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value
from cluster.messages.session import MountCounts
from cluster.messages.values import Count, Volume


class ServerInfo(Value, frozen=True):
    """A server as people see it."""

    server: str
    roles: list[str]  # of its processes that have a session
    volumes: list[Volume]
    waiting_tasks: int  # in its queue
    dead_tasks: int
    last_seen_s: float  # age of its last heartbeat; -1: this manager has never heard it
    state: str = "up"  # see `cluster.membership`
    since_ns: int = 0  # when it came into that state; 0: not known
    wanted_empty: bool = False  # it is being drained, or will be when it is back
    manager: str = ""  # its candidate's address
    release: str = ""  # of Godwit, as its agent said
    problems: list[str] = []  # sentences for people
    counts: MountCounts | None = None  # what its mount last said of itself; None: there is none
    oldest_task_s: float = -1.0  # age of the oldest task in its queue; -1: there is none


class Holdings(Value, frozen=True):
    """What a server's volumes hold."""

    replicas: int  # of any version
    current: int  # of the newest version
    bytes: int  # of the replicas
    homes: int  # files whose home is there
    dirty: int  # of these, files that may have content no replica has
    sole: int  # files whose only current replica on a server that counts is there


class ServerDetails(Reply, frozen=True):
    """Everything about one server."""

    info: ServerInfo
    holdings: Holdings
    tasks: dict[str, int]  # in its queue, by state
    is_manager: bool
    leases: int = 0  # tokens that its mount holds
    forsaken: int = 0  # objects there whose files fell back to an older content
    conflicts: list[bytes] = []  # some paths of files that came from such objects
    metrics: dict[str, dict[str, float]] = {}  # what its processes have counted, by role; a manager's in this term


class GetServer(ManagerRequest[ServerDetails], frozen=True):
    """Everything about one server. Takes time in proportion to the replicas that it holds."""

    server: str


class RemoveServer(ManagerRequest[Count], frozen=True):
    """The server leaves the network; the reply counts the replicas that were forgotten. May be repeated.

    Refused while a home or the only current replica of a file is there, and for a server that is not down, while it holds
    anything.
    """

    server: str


class RevokeServer(ManagerRequest[Done], frozen=True):
    """All certificates of the server that were signed are void from now on. May be repeated.

    Refused for the manager's own. The server stays a member, whose processes are let in with new certificates.
    """

    server: str


class LosePlan(Reply, frozen=True):
    """What declaring a server or a volume lost means for the files that have their home there, in numbers of files and bytes."""

    server: str
    whole: int  # others have their content
    whole_bytes: int
    older: int  # others have an older one, to which they fall back
    older_bytes: int
    only: int  # nobody else has anything of them: they stay where they are
    only_bytes: int
    paths: list[bytes]  # some of the last


class LoseServer(ManagerRequest[LosePlan], frozen=True):
    """Gives a server up for lost that is down, or with `force` one that is silent; with `dry_run` only says what follows.

    May be repeated. Its files fall back in the background.
    """

    server: str
    dry_run: bool = False
    force: bool = False


class LoseVolume(ManagerRequest[LosePlan], frozen=True):
    """As `LoseServer`, for one volume that is out (`VolumeStanding`)."""

    volume: int
    dry_run: bool = False


class RemoveVolume(ManagerRequest[Count], frozen=True):
    """Forgets a volume that is out and that no file needs; answered with how many replicas were forgotten."""

    volume: int


class Added(Reply, frozen=True):
    """What became of `AddServer`."""

    server: str
    outcome: str  # invited, readmitted or undrained
    cluster: str
    managers: list[str]  # where candidates are reached
    token: str = ""  # of an invitation: good for one use by `server`
    expires_s: float = 0.0  # how long the token is good


class AddServer(ManagerRequest[Added], frozen=True):
    """Invites a server, re-admits one that has left, or takes the draining of one back."""

    server: str
    expires_s: float = 3600.0
    candidate: bool = False  # it may become the manager: it gets the authority's key and the database's password
