"""What becomes of what a mount keeps of an inode: each state, each event.

`docs/leases.md` quotes the table, which is made by running the code.
"""

from collections.abc import Callable
from pathlib import Path

from cluster.messages import Grant, Node, Recall
from fusefs.caching.cache import Caching

INO = 7
ACCESS_S = 15.0
DOCUMENT = Path(__file__).parents[2] / "docs" / "leases.md"
NODE = Node(INO, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class Keeper:
    """A mount that keeps one inode at most. `late`: an answer that was given before whatever happens, and arrives after it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.serial = 1
        self.caching = Caching(lambda: self.now)
        self.late = (self.grant(), self.now)

    def grant(self) -> Grant:
        self.serial += 1
        return Grant(self.serial, ACCESS_S, [INO])

    def answer(self, grant: Grant, asked_s: float) -> None:
        self.caching.keep_node(NODE, self.caching.take(grant, asked_s))

    def recall(self) -> None:
        self.serial += 1
        self.caching.recalled(Recall(1, self.serial, [INO]))

    def pass_time(self) -> None:
        self.now += ACCESS_S
        self.caching.expired()

    def change(self) -> None:
        self.now += 0.1
        self.caching.changed([INO], None, self.now)

    @property
    def state(self) -> str:
        if self.caching.node(INO) is not None:
            return "kept"
        return "leased" if self.caching.may_keep(INO) else "none"


STATES: dict[str, list[Callable[[Keeper], None]]] = {
    "none": [],
    "leased": [lambda keeper: keeper.answer(keeper.grant(), keeper.now), Keeper.change],
    "kept": [lambda keeper: keeper.answer(keeper.grant(), keeper.now)],
}
EVENTS: dict[str, Callable[[Keeper], None]] = {
    "an answer with a grant": lambda keeper: keeper.answer(keeper.grant(), keeper.now),
    "an answer without": lambda keeper: keeper.caching.keep_node(NODE, keeper.caching.take(None, keeper.now)),
    "leases renewed": lambda keeper: keeper.caching.renewed(keeper.grant(), keeper.now),
    "a change of our own": Keeper.change,
    "a recall": Keeper.recall,
    "its deadline": Keeper.pass_time,
    "another manager's welcome": lambda keeper: keeper.caching.welcomed(2),
}
LATE = "… and then an answer from before it"


def in_state(name: str) -> Keeper:
    keeper = Keeper()
    for step in STATES[name]:
        step(keeper)
    return keeper


def state_table() -> str:
    """What each event makes of each state, and that a late answer changes nothing, in Markdown."""
    lines = [f"| event | {' | '.join(STATES)} | {LATE} |", "|---" * (len(STATES) + 2) + "|"]
    for event, happens in EVENTS.items():
        after, effects = [], set()
        for name in STATES:
            keeper = in_state(name)
            happens(keeper)
            after.append("=" if keeper.state == name else keeper.state)
            before = keeper.state
            keeper.answer(*keeper.late)
            effects.add(keeper.state != before)
        late = "kept, unless it was changed here" if True in effects else "changes nothing"
        lines.append(f"| {event} | {' | '.join(after)} | {late} |")
    return "\n".join(lines) + "\n"


def test_the_document_has_the_table_of_states() -> None:
    assert state_table() in DOCUMENT.read_text(), state_table()
