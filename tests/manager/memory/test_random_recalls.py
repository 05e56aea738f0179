"""Grants, changes, answers, lost answers, expiry and new mounts in any order: nobody ever caches what somebody changes.

The mounts are models: they believe in what they were granted until they answer a recall or their time, counted from before they
asked, is over. Time is simulated; nothing of the product is replaced but the catalog, which these rules do not need.
"""

from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import monotonic_s
from cluster.leases import LeaseKeys
from cluster.messages import Recall
from cluster.trust.identity import Role
from manager.memory.holds import Holds
from manager.memory.leases import Leases
from manager.memory.mutations import HeldElsewhere, Mutation, Mutations
from manager.memory.recalls import Recalls
from manager.memory.sessions import Session, Sessions
from tests.manager.office import SECRET

ACCESS_S = 10.0
STEP_S = 0.3  # what a part of a transaction takes, where it takes time
INODES = 3
MOUNTS = 3

WHAT = [*["read"] * 3, *["change"] * 2, *["answer"] * 2, *["pass"] * 2, "give back", "replace", "long pass"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(WHAT),
        st.integers(0, MOUNTS - 1),
        st.integers(1, INODES),
        st.booleans(),
    ),
    max_size=60,
)


@dataclass
class Mount:
    """What one mount believes. `told`: recalls that it has not answered; `floors`: the newest recall of each inode."""

    session: Session
    cached: dict[int, tuple[int, int, float]] = field(default_factory=dict)  # inode: version, serial, deadline
    floors: dict[int, int] = field(default_factory=dict)
    told: list[Recall] = field(default_factory=list)

    def believes(self, ino: int, now: float) -> int | None:
        version, _serial, deadline = self.cached.get(ino, (0, 0, 0.0))
        return version if deadline > now else None


class World:
    """A manager's memory, a catalog of one version for each inode, and the mounts."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.versions = dict.fromkeys(range(1, INODES + 1), 1)
        self.leases = Leases(1, ACCESS_S, LeaseKeys(SECRET), None, monotonic_s)  # type: ignore[arg-type]
        self.sessions = Sessions(1000.0)
        self.mutations = Mutations(self.leases)
        self.recalls = Recalls(self.leases, self.sessions, Holds(self.leases, self.leases.counters))
        self.numbers = iter(range(1, 10_000))
        self.mounts = [self.start(index) for index in range(MOUNTS)]
        self.pending = 0

    def start(self, index: int) -> Mount:
        session, replaced = self.sessions.introduce(next(self.numbers), f"s{index}", Role.MOUNT, monotonic_s())
        for other in replaced:
            self.sessions.end(other)
            self.leases.end_session(other.number)
            self.recalls.end_session(other.number)
        return Mount(session)

    async def read(self, mount: Mount, ino: int, *, slow: bool) -> None:
        """Asks, is answered and granted, as `Granting.offer` does; the reading and the way back may take their time."""
        asked = monotonic_s()
        version = self.versions[ino]
        if slow:
            await trio.sleep(STEP_S * 1.5)
        now = monotonic_s()
        with self.mutations.lock:
            if not self.sessions.is_live(mount.session) or not self.mutations.is_at_rest(ino, mount.session, asked, now):
                return
            serial = self.leases.next_serial()
            self.leases.let_cache(mount.session, [ino], ino, serial, now)
        if slow:
            await trio.sleep(STEP_S * 1.5)
        if serial > mount.floors.get(ino, 0) and mount in self.mounts:
            mount.cached[ino] = (version, serial, asked + ACCESS_S)

    async def change(self, mount: Mount, ino: int, also: int) -> None:
        """As `opening.apply` does; the transaction is the step in which the versions are raised."""
        mutation = Mutation(mount.session, monotonic_s())
        self.pending += 1
        try:
            while self.sessions.is_live(mount.session):
                mutation.began_s = monotonic_s()
                try:
                    await self.transaction(mutation, {ino, also})
                except HeldElsewhere as conflict:
                    await self.recalls.take_back(conflict.held)
                else:
                    return
        finally:
            self.mutations.release(mutation)
            self.pending -= 1

    async def transaction(self, mutation: Mutation, inodes: set[int]) -> None:
        """The body, the commit and its effects come one after the other, as with a database in a thread."""
        held = self.mutations.claim(mutation, inodes)
        if held:
            raise HeldElsewhere(held)
        await trio.sleep(STEP_S)
        for ino in inodes:
            self.versions[ino] += 1
        for mount in self.mounts:
            if mount.session is mutation.session:  # it knows what it did
                for ino in inodes:
                    mount.cached.pop(ino, None)
                    mount.floors[ino] = self.leases.next_serial()
        self.check()
        await trio.sleep(STEP_S)
        self.mutations.done(mutation, monotonic_s())

    def deliver(self) -> None:
        """The streams bring what there is; nobody has obeyed it yet."""
        for mount in self.mounts:
            recall = self.recalls.next_for(self.recalls.line(mount.session.number))
            if recall is not None:
                mount.told.append(recall)

    def answer(self, mount: Mount) -> None:
        """Obeys all recalls that have come, and answers; the last one first, as they may overtake one another."""
        for recall in reversed(mount.told):
            for ino in recall.inodes:
                mount.floors[ino] = max(mount.floors.get(ino, 0), recall.serial)
                if ino in mount.cached and mount.cached[ino][1] < recall.serial:
                    del mount.cached[ino]
            self.recalls.answered(mount.session, [recall.number], [], 1)
        mount.told.clear()

    def give_back(self, mount: Mount, ino: int) -> None:
        known = mount.cached.pop(ino, None)
        if known is not None:
            self.recalls.given_back(mount.session, [ino], known[1])

    def check(self) -> None:
        now = monotonic_s()
        for mount in self.mounts:
            for ino, version in self.versions.items():
                assert mount.believes(ino, now) in (None, version), f"{mount.session.server} caches what inode {ino} was"

    def expire(self) -> None:
        self.leases.expire(monotonic_s())
        self.recalls.expire(monotonic_s())


async def run(steps: list[tuple[str, int, int, bool]]) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        for what, index, ino, flag in steps:
            mount = world.mounts[index]
            if what == "read":
                nursery.start_soon(partial(world.read, mount, ino, slow=flag))
            elif what == "change":
                nursery.start_soon(world.change, mount, ino, ino % INODES + 1 if flag else ino)
            elif what == "answer":
                world.answer(mount)
            elif what == "give back":
                world.give_back(mount, ino)
            elif what == "replace":
                world.mounts[index] = world.start(index)
            else:
                await trio.sleep(0.2 if what == "pass" else ACCESS_S)
                world.expire()
            await trio.testing.wait_all_tasks_blocked()
            world.deliver()
            world.check()
        await trio.sleep(3 * ACCESS_S)
        assert world.pending == 0, "everybody gets on in the end, answered or not"
        world.expire()
        assert len(world.leases) == len(world.recalls) == 0


@pytest.mark.search
@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_nobody_caches_what_somebody_changes(steps: list[tuple[str, int, int, bool]]) -> None:
    trio.run(run, steps, clock=trio.testing.MockClock(autojump_threshold=0))
