"""The life of a task as a transition table: the only place that says which state follows. Pure.

A task that is done is deleted, here the state `GONE`. `docs/queues.md` shows the table.
"""

from enum import Enum

from cluster.messages import TaskState

GONE = "gone"


class Event(Enum):
    """What happens to a task."""

    CLAIM = "claimed by its server's agent"
    NO_SOURCE = "no server with a current replica is there"
    DONE = "the agent reports that it is done"
    CHANGED = "the source was written while it was copied"
    OVERTAKEN = "it failed, and a newer version is wanted by now"
    FAILED = "it failed"
    GIVE_UP = "it failed too often, or for good"
    LOST = "the claim ran out, or the agent is another process"
    DUE = "its back-off is over"
    RETRY = "`godwit queue retry`"
    NEW_MANAGER = "a new manager takes office"
    REPLAN = "something else is wanted there"
    UNWANTED = "nothing is wanted there any more"


TRANSITIONS: dict[str, dict[Event, str]] = {
    TaskState.WAITING: {
        Event.CLAIM: TaskState.CLAIMED,
        Event.NO_SOURCE: TaskState.DEFERRED,
        Event.NEW_MANAGER: TaskState.WAITING,
        Event.REPLAN: TaskState.WAITING,
        Event.UNWANTED: GONE,
    },
    TaskState.CLAIMED: {
        Event.DONE: GONE,
        Event.CHANGED: TaskState.DEFERRED,
        Event.OVERTAKEN: TaskState.WAITING,
        Event.FAILED: TaskState.DEFERRED,
        Event.GIVE_UP: TaskState.DEAD,
        Event.LOST: TaskState.WAITING,
        Event.NEW_MANAGER: TaskState.CLAIMED,
        Event.REPLAN: TaskState.WAITING,
    },
    TaskState.DEFERRED: {
        Event.DUE: TaskState.WAITING,
        Event.RETRY: TaskState.WAITING,
        Event.NEW_MANAGER: TaskState.WAITING,
        Event.REPLAN: TaskState.WAITING,
        Event.UNWANTED: GONE,
    },
    TaskState.DEAD: {
        Event.RETRY: TaskState.WAITING,
        Event.NEW_MANAGER: TaskState.DEAD,
        Event.REPLAN: TaskState.WAITING,
        Event.UNWANTED: GONE,
    },
}


def next_state(state: str, event: Event) -> str:
    """The state after *event*; raises `KeyError` for what cannot happen to a task in that state."""
    return TRANSITIONS[state][event]


def states_after(event: Event) -> dict[str, str]:
    """For each state in which *event* changes the state: the one that follows."""
    return {state: row[event] for state, row in TRANSITIONS.items() if row.get(event, state) != state}


def table() -> str:
    """The states as a table in Markdown, for docs/queues.md."""
    lines = [f"| event | {' | '.join(TRANSITIONS)} |", f"|---|{'---|' * len(TRANSITIONS)}"]
    for event in Event:
        following = [row.get(event, "–") for row in TRANSITIONS.values()]
        lines.append(f"| {event.value} | {' | '.join(following)} |")
    return "\n".join(lines) + "\n"
