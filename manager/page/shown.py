"""The JSON object that the page shows. Its texts can be shown as they are: what is not printable in them was escaped.

Times ending in `at_s` and `since_s` are seconds since the epoch, by this manager's clock.
"""

import msgspec


class Shown(msgspec.Struct, frozen=True):
    """A part of it."""


class Finding(Shown, frozen=True):
    """Something that wants attention."""

    text: str
    look: str  # the command that shows more


class ShownVolume(Shown, frozen=True):
    volume: int
    path: str
    free_bytes: int
    total_bytes: int
    bad: str  # its condition or standing, if it is not in use; else empty


class Server(Shown, frozen=True):
    name: str
    is_manager: bool
    state: str  # a `ServerState`
    since_s: float  # 0: not known
    seen_s: float  # age of its last heartbeat; -1: never heard
    release: str
    free_bytes: int  # on the file systems of the volumes that are in use, each once
    total_bytes: int
    volumes: list[ShownVolume]
    kernel_rate: float | None  # requests of the kernel to its mount, in a second
    manager_rate: float | None  # requests of the mount to managers
    waiting_tasks: int
    dead_tasks: int
    oldest_task_s: float  # age; -1: there is none
    problems: list[str]


class Migration(Shown, frozen=True):
    number: int
    kind: str
    state: str
    source: str
    target: str  # empty: placement chooses
    planned: bool  # every file has its move
    files: int
    done_files: int
    failed_files: int
    size: int  # in bytes
    done_size: int
    rate: float  # bytes a second
    left_s: float | None
    problem: str
    paths: list[str]  # some of those that were asked for


class AtRisk(Shown, frozen=True):
    path: str
    reason: str
    since_s: float


class Event(Shown, frozen=True):
    at_s: float
    severity: str
    text: str
    times: int  # that it happened
    last_s: float  # when it did so last


class Other(Shown, frozen=True):
    """The page of another candidate."""

    server: str
    url: str


class Network(Shown, frozen=True):
    """What the manager in office knows. Of long lists there are the first ones."""

    term: int
    at_s: float
    summary: str
    findings: list[Finding]  # the most urgent first; none: all is well
    free_bytes: int
    total_bytes: int
    inodes: int
    below_policy: int
    damaged: int
    waiting_tasks: int
    claimed_tasks: int
    dead_tasks: int
    servers: list[Server]
    migrations: list[Migration]  # that are not over, the newest first
    at_risk: list[AtRisk]
    events: list[Event]  # the newest first
    others: list[Other]  # candidates that may be in office if this one is lost


class Elsewhere(Shown, frozen=True):
    """This candidate is not in office."""

    why: str
    manager: Other | None
    candidates: list[Other]


class Picture(Shown, frozen=True):
    """The whole. Without `network` and `elsewhere` nothing is known yet."""

    cluster: str
    server: str  # that answers
    release: str
    age_s: float = 0.0  # of what is known of the network
    why: str = ""  # nothing newer is known
    network: Network | None = None
    elsewhere: Elsewhere | None = None
    password: bool = False  # who looks has given it, and may take that back
