"""The manager's office: who holds it, and who hears whom."""

from __future__ import annotations

from cluster.catalog_point import CatalogPoint
from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply

# Any candidate answers the following three at once, to anybody of its cluster: without `Hello`, and without being in office.


class Pong(Reply, frozen=True):
    """Who holds the office, as far as the sender knows."""

    server: str
    term: int  # its own, if it is in office, else that of the last holder it saw
    in_office: bool  # the sender is the manager
    address: str = ""  # of the holder; empty when it saw the office vacant, or nothing yet
    trouble: int = 0  # errno of what the disk of the catalog does not allow, so that nobody can be in office
    why: str = ""  # the same in words


class Ping(ManagerRequest[Pong], frozen=True):
    cluster: str


class Hearing(Reply, frozen=True):
    """Whether `server` hears a manager; `Unavailable` is answered instead while it cannot know yet."""

    server: str
    hears: bool


class AskHearing(ManagerRequest[Hearing], frozen=True):
    """The pre-vote: asked by a candidate that has not heard a manager. `term` is the last one that it saw in the catalog."""

    cluster: str
    term: int


class CatalogSeen(Reply, frozen=True):
    """The highest point that `server` has seen of the catalog; None: it has seen none."""

    server: str
    point: CatalogPoint | None = None


class AskCatalog(ManagerRequest[CatalogSeen], frozen=True):
    """Asked of the other candidates by one that starts, whose own memory may be behind."""

    cluster: str


class OfficeInfo(Reply, frozen=True):
    """The office as one candidate sees it, for `godwit manager show`."""

    server: str  # the candidate's own
    in_office: bool
    in_office_s: float  # for how long
    hears: bool | None  # whether it hears a manager; None while it cannot know yet
    manager: str  # the holder; empty if the office is vacant
    term: int
    beat: int  # raised by each extension of the office
    address: str  # of the holder
    candidates: list[str]  # addresses that it would ask


class AskOffice(ManagerRequest[OfficeInfo], frozen=True):
    cluster: str


class StepDown(ManagerRequest[Done], frozen=True):
    """The manager ends `term` in order, after its reply; done already if it is of another term."""

    term: int
