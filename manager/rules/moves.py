"""The rules of a move: one replica that leaves a volume by copy, check and delete. Pure.

`TRANSITIONS` is the only truth about states: an event that a state does not know is a mistake and raises. The decision is
made anew whenever something about the file has changed, from what is there at that moment, so that no step depends on
an earlier one: a deletion that nobody has claimed yet is taken back as soon as it would leave too few copies.
`docs/migration.md` explains the states and quotes `as_markdown()`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.messages import MoveState
from manager.rules.placement import Layout, Place, has_room

ACTIVE = (MoveState.COPYING, MoveState.WAITING, MoveState.DELETING)  # the file is leaving the source
UNFINISHED = (MoveState.PLANNED, *ACTIVE)


class Event(StrEnum):
    """What may happen to a move."""

    START = "start"
    COPIES_MISSING = "copies missing"
    IN_USE = "in use"
    CLEAR = "clear"
    DELETED = "deleted"
    GAVE_UP = "gave up"
    ARRIVED = "arrived"
    GONE = "gone"
    TAKEN = "taken"
    CANCEL = "cancel"
    RESUME = "resume"
    RETURNED = "returned"


MEANINGS = {
    Event.START: "a place in the migration's window is free",
    Event.COPIES_MISSING: "the target's copy, or one that the policy wants besides the source, is not current (any more)",
    Event.IN_USE: "all copies are there, but the source is the home, and the file is open there or for writing, or not committed",
    Event.CLEAR: "all copies are there, and the source is not the home (any more)",
    Event.DELETED: "the source's agent has moved the object to the trash",
    Event.GAVE_UP: "a task of the file is dead, or the target has no room",
    Event.ARRIVED: "a copy that had been given up was made after all (`godwit queue retry`)",
    Event.GONE: "the file has been removed",
    Event.TAKEN: "another migration moves the file already",
    Event.CANCEL: "`godwit migrations cancel`",
    Event.RESUME: "`godwit migrations resume`",
    Event.RETURNED: "a drain finds the file on the server again",
}

_DECIDED = {Event.COPIES_MISSING: MoveState.COPYING, Event.IN_USE: MoveState.WAITING, Event.CLEAR: MoveState.DELETING}
_UNDER_WAY = {**_DECIDED, Event.DELETED: MoveState.DONE, Event.GAVE_UP: MoveState.FAILED}

TRANSITIONS: Mapping[str, Mapping[Event, str]] = {
    MoveState.PLANNED: {
        Event.START: MoveState.COPYING,
        Event.GAVE_UP: MoveState.FAILED,
        Event.GONE: MoveState.SKIPPED,
        Event.TAKEN: MoveState.SKIPPED,
        Event.CANCEL: MoveState.CANCELLED,
    },
    MoveState.COPYING: {**_UNDER_WAY, Event.GONE: MoveState.SKIPPED, Event.CANCEL: MoveState.CANCELLED},
    MoveState.WAITING: {**_UNDER_WAY, Event.GONE: MoveState.SKIPPED, Event.CANCEL: MoveState.CANCELLED},
    MoveState.DELETING: {**_UNDER_WAY},
    MoveState.DONE: {Event.RETURNED: MoveState.PLANNED},
    MoveState.SKIPPED: {Event.RETURNED: MoveState.PLANNED},
    MoveState.FAILED: {
        Event.RESUME: MoveState.PLANNED,
        Event.ARRIVED: MoveState.COPYING,
        Event.DELETED: MoveState.DONE,
        Event.GONE: MoveState.SKIPPED,
        Event.CANCEL: MoveState.CANCELLED,
    },
    MoveState.CANCELLED: {},
}


def next_state(state: str, event: Event) -> str:
    """The state after *event*; raises `ValueError` for an event that cannot happen in *state*."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise ValueError(f"a move that is {state} cannot meet {event!r}") from None


def as_markdown() -> str:
    """The transitions as a table for the documentation."""
    lines = ["| state | event | next state |", "|---|---|---|"]
    for state, transitions in TRANSITIONS.items():
        lines += [f"| {state} | {event}: {MEANINGS[event]} | {target} |" for event, target in transitions.items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class Move:
    """An active move of the file that is looked at. `target` 0: wherever placement says. `paused`: its migration is."""

    migration: int  # that moves the file
    source: int  # volume that the replica leaves
    target: int  # volume that is to get a copy
    state: str  # of `TRANSITIONS`
    paused: bool = False
    error: str = ""  # why it did not go on when it was last looked at


@dataclass(frozen=True)
class Step:
    """What becomes of a move now. `text` says why it does not go on; empty if it does."""

    event: Event
    text: str = ""


NOT_COMMITTED = Step(Event.IN_USE, "the file is open for writing, or at its home, or not committed")
VANISHED = Step(Event.GONE, "the file was removed")


def taken_by(migration: int) -> str:
    """Why a file is not moved that another migration moves."""
    return f"migration {migration} moves the file already"


def out_of_reach(copies: int, layout: Layout) -> str:
    """Why a source must stay without which the policy could not be kept."""
    return f"the policy wants {copies} copies, and besides the source only {len(layout.wanted)} volumes can have one"


def look_at_target(move: Move, size: int, stored: Collection[int], places: Mapping[int, Place]) -> Step | None:
    """What keeps the move from having any effect on the file's copies at present; None if nothing does."""
    if move.target == 0:
        return None
    place = places.get(move.target)
    if place is None or not place.counts:
        return Step(Event.COPIES_MISSING, f"a copy on volume {move.target} would not count at present")
    # What is there already needs neither room nor permission.
    if move.target in stored:
        return None
    if not place.accepts:
        return Step(Event.COPIES_MISSING, f"volume {move.target} of {place.server} takes no new copies")
    if not has_room(place, size):
        return Step(Event.GAVE_UP, f"volume {move.target} of {place.server} has no room for {size} bytes")
    return None


def decide(move: Move, *, home: int, copies: int, layout: Layout, is_current: Collection[int]) -> Step:
    """What the move does next, for a file whose home could be moved off the source if that was possible at all.

    The source may go only if, without it, as many current replicas remain as the policy wants, the target's among them
    (unless the policy wants no copy there); and only when it is not the home.
    """
    if move.target in layout.wanted and move.target not in is_current:
        return Step(Event.COPIES_MISSING)
    if len(layout.wanted) < copies:
        return Step(Event.COPIES_MISSING, out_of_reach(copies, layout))
    if layout.secured < copies:
        return Step(Event.COPIES_MISSING)
    if move.source == home:
        return NOT_COMMITTED
    return Step(Event.CLEAR)


def choose_home(*, home: int, copies: int, layout: Layout, moves: Collection[Move], fit: Mapping[int, Place]) -> int:
    """The volume that should become the home; 0 if the home is where it may be. *fit*: volumes whose replica could be it.

    A home that a move takes away goes to the move's target, but not before all copies are there. A home that does not count,
    because its server is down for long, is replaced by the best replica at once: it must be possible to write.
    """
    move = next((move for move in moves if move.source == home), None)
    if move is not None:
        if layout.secured < copies:
            return 0
        if move.target in layout.wanted:
            return move.target if move.target in fit else 0
    elif home in layout.wanted:
        return 0
    candidates = [place for volume, place in fit.items() if volume in layout.wanted or move is None]
    if move is None:
        candidates = [place for place in candidates if place.up]
    best = min(candidates, key=lambda place: (not place.up, not place.accepts, place.volume), default=None)
    return 0 if best is None else best.volume
