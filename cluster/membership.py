"""The states of a server in the network, as a table: the only truth about what follows what, and what each state means.

A server's standing is its state and the wish that it be drained, which outlives a time of being down. An event that the table
does not have for a standing raises, and changes nothing. Who decides which event has happened: `manager.rules.liveness` for what
was heard, and people for the rest.
"""

import errno
from dataclasses import astuple, dataclass
from enum import StrEnum
from typing import NamedTuple

from cluster.errors import Refused


class ServerState(StrEnum):
    """What `servers ls` shows."""

    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"
    DRAINING = "draining"
    LOST = "lost"
    LEFT = "left"


class VolumeCondition(StrEnum):
    """How a volume's disk is, as its server's agent finds it."""

    GOOD = "good"
    READ_ONLY = "read-only"  # was mounted so, or made so by the kernel after an error
    FAILING = "failing"  # gives errors
    SILENT = "silent"  # does not answer
    AWAY = "away"  # there is no such volume in any of its server's directories


READABLE = frozenset({VolumeCondition.GOOD, VolumeCondition.READ_ONLY, VolumeCondition.FAILING})
"""Of which content may be had at all."""


class VolumeStanding(StrEnum):
    """What the catalog says of a volume, beside how its server stands."""

    IN = "in"
    OUT = "out"  # its replicas do not count
    LOST = "lost"  # declared lost: it will not come back


class Event(StrEnum):
    """What happens to a server. The first three come from its agent's reports or their absence."""

    HEARD = "heard"
    SILENT = "silent"
    SILENT_TOO_LONG = "silent too long"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    LOSE = "lose"
    REMOVE = "remove"
    ADD = "add"


class Standing(NamedTuple):
    """Where a server stands. `wanted_empty`: it is to be drained, or was when it was last heard."""

    state: ServerState
    wanted_empty: bool = False

    def __str__(self) -> str:
        return f"{self.state}, wanted empty" if self.state is ServerState.DOWN and self.wanted_empty else str(self.state)


UP = Standing(ServerState.UP)
SUSPECT = Standing(ServerState.SUSPECT)
DOWN = Standing(ServerState.DOWN)
DRAINING = Standing(ServerState.DRAINING, wanted_empty=True)
DOWN_WANTED_EMPTY = Standing(ServerState.DOWN, wanted_empty=True)
LOST = Standing(ServerState.LOST)
LEFT = Standing(ServerState.LEFT)

STANDINGS = (UP, SUSPECT, DRAINING, DOWN, DOWN_WANTED_EMPTY, LOST, LEFT)

# A draining server that is silent stays draining until it is down: it gets no new copies in either case.
TRANSITIONS: dict[Standing, dict[Event, Standing]] = {
    UP: {
        Event.HEARD: UP,
        Event.SILENT: SUSPECT,
        Event.SILENT_TOO_LONG: DOWN,
        Event.DRAIN: DRAINING,
        Event.REMOVE: LEFT,
    },
    SUSPECT: {
        Event.HEARD: UP,
        Event.SILENT: SUSPECT,
        Event.SILENT_TOO_LONG: DOWN,
        Event.DRAIN: DRAINING,
        Event.REMOVE: LEFT,
    },
    DRAINING: {
        Event.HEARD: DRAINING,
        Event.SILENT: DRAINING,
        Event.SILENT_TOO_LONG: DOWN_WANTED_EMPTY,
        Event.DRAIN: DRAINING,
        Event.UNDRAIN: UP,
        Event.REMOVE: LEFT,
    },
    DOWN: {
        Event.HEARD: UP,
        Event.SILENT: DOWN,
        Event.SILENT_TOO_LONG: DOWN,
        Event.DRAIN: DOWN_WANTED_EMPTY,
        Event.LOSE: LOST,
        Event.REMOVE: LEFT,
    },
    DOWN_WANTED_EMPTY: {
        Event.HEARD: DRAINING,
        Event.SILENT: DOWN_WANTED_EMPTY,
        Event.SILENT_TOO_LONG: DOWN_WANTED_EMPTY,
        Event.DRAIN: DOWN_WANTED_EMPTY,
        Event.UNDRAIN: DOWN,
        Event.LOSE: LOST,
        Event.REMOVE: LEFT,
    },
    LOST: {
        Event.LOSE: LOST,
        Event.REMOVE: LEFT,
        Event.ADD: SUSPECT,
    },
    LEFT: {
        Event.ADD: SUSPECT,
    },
}


@dataclass(frozen=True)
class Meaning:
    """What a state is good for.

    `holds`: what is on its volumes may be needed, and is in the catalog. `counts`: a replica there counts as a copy.
    `accepts`: new copies and new homes may go there. `works`: its agent gets tasks. `belongs`: its processes may introduce
    themselves.
    """

    holds: bool
    counts: bool
    accepts: bool
    works: bool
    belongs: bool


MEANINGS: dict[ServerState, Meaning] = {
    ServerState.UP: Meaning(holds=True, counts=True, accepts=True, works=True, belongs=True),
    ServerState.SUSPECT: Meaning(holds=True, counts=True, accepts=True, works=True, belongs=True),
    ServerState.DRAINING: Meaning(holds=True, counts=True, accepts=False, works=True, belongs=True),
    ServerState.DOWN: Meaning(holds=True, counts=False, accepts=False, works=False, belongs=True),
    ServerState.LOST: Meaning(holds=True, counts=False, accepts=False, works=False, belongs=False),
    ServerState.LEFT: Meaning(holds=False, counts=False, accepts=False, works=False, belongs=False),
}


class IllegalTransition(Refused):
    """An event that cannot happen to a server that stands where it stands."""

    def __init__(self, standing: Standing, event: Event) -> None:
        super().__init__(f"a server that is {standing} cannot be told: {event}", errno.EINVAL)


def transition(standing: Standing, event: Event) -> Standing:
    """Where the server stands after *event*; raises `IllegalTransition`."""
    following = TRANSITIONS[standing].get(event)
    if following is None:
        raise IllegalTransition(standing, event)
    return following


def stored_state(standing: Standing) -> ServerState:
    """What the catalog keeps: silence up to the delay is the memory of one manager, the wish has a column of its own."""
    return standing.state if standing.state in (ServerState.DOWN, ServerState.LOST, ServerState.LEFT) else ServerState.UP


def standing_of(stored: str, *, wanted_empty: bool) -> Standing:
    """The standing that the catalog's columns mean.

    A state that is none counts as down: what the server has may be needed, but nobody relies on it.
    """
    known = ServerState(stored) if stored in set(ServerState) else ServerState.DOWN
    match known, wanted_empty:
        case ServerState.LEFT, _:
            return LEFT
        case ServerState.LOST, _:
            return LOST
        case ServerState.DOWN, True:
            return DOWN_WANTED_EMPTY
        case ServerState.DOWN, False:
            return DOWN
        case _, True:
            return DRAINING
        case _:
            return UP


def table() -> str:
    """The states as a table in Markdown, for docs/membership.md."""
    lines = [
        f"| state | {' | '.join(Event)} | holds | counts | accepts | works | belongs |",
        f"|---|{'---|' * len(Event)}---|---|---|---|---|",
    ]
    for standing in STANDINGS:
        following = [str(TRANSITIONS[standing].get(event, "–")) for event in Event]
        meaning = MEANINGS[standing.state]
        means = ["yes" if good else "no" for good in astuple(meaning)]
        lines.append(f"| **{standing}** | {' | '.join(following)} | {' | '.join(means)} |")
    return "\n".join(lines) + "\n"
