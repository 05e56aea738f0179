"""What has happened in the network, as people are told of it."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import ManagerRequest, Reply, Value


class EventRow(Value, frozen=True):
    """Something that has happened, once or again and again; `cluster.events` says it in a sentence."""

    event: int  # its number: what happened later has a larger one, under whichever manager
    time_ns: int  # when it happened, by the clock of the manager then
    last_ns: int  # when it happened last
    count: int  # how often, or of how many things
    severity: str  # a `cluster.events.Severity`
    kind: str  # a `cluster.events.EventKind`; a manager of a later release may know others
    server: str  # which it is about; empty: none
    volume: int  # the same; 0: none
    fields: dict[str, int | str]  # the rest


class Events(Reply, frozen=True):
    """`events` in the order of their numbers. `newest`: the number up to which there are no more of those that were asked for."""

    events: list[EventRow]
    newest: int


class ListEvents(ManagerRequest[Events], frozen=True):
    """The newest `limit` events; or with `after` the next ones that follow that number.

    Only those that happened since a time, of a server, of a kind or of a group of kinds (the first word of their names), of a
    severity or worse.
    """

    after: int = -1
    since_ns: int = 0
    server: str = ""
    kind: str = ""
    severity: str = ""
    limit: int = 1000
