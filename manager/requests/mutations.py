"""Changes of what mounts may be caching: made as soon as nobody else caches it any more (`manager.memory.recalls`)."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import trio

from cluster.clock import monotonic_s
from cluster.messages import Done, Sync
from manager.catalog.store import Transaction
from manager.memory.mutations import HeldElsewhere, Mutation
from manager.memory.sessions import Session
from manager.memory.state import PRESENT
from manager.term import Term

T = TypeVar("T")


async def mutate(
    term: Term,
    mutation: Mutation,
    work: Callable[[Transaction], T],
    *,
    known: Iterable[int] = (),
    check: Callable[[], None] = lambda: None,
    durable: bool = False,
    grows: bool = False,
) -> T:
    """What *work* returns, which claims what it changes before it writes; in the end the caller releases *mutation*.

    What can be told without reading the catalog (*known*) is called back first; the rest is found in the transaction, which is
    then run again. *check* raises if the change is not wanted any more after waiting.
    """
    held = term.state.mutations.claim(mutation, known)
    if held:
        # The claims that were just made keep others from being granted what is taken back here.
        await term.state.recalls.take_back(held)
    while True:
        # Before each attempt, since each comes after a wait.
        check()
        # What the session is granted of its own change is read from here on.
        mutation.began_s = monotonic_s()
        try:
            return await term.store.write_uncancelled(work, durable=durable, grows=grows)
        except HeldElsewhere as conflict:
            # Nothing was written. Others may change the catalog meanwhile: the transaction runs again as a whole.
            await term.state.recalls.take_back(conflict.held)
            await await_present(term, conflict.absent)
            await await_shown(term, conflict.unshown)


def mutate_at_once(
    term: Term, mutation: Mutation, work: Callable[[Transaction], T], *, known: Iterable[int] = (), grows: bool = False
) -> T | None:
    """As `mutate`, while the store is idle; None, and nothing has changed, if something has to be called back first."""
    if term.state.mutations.claim(mutation, known):
        return None
    try:
        return term.store.write_at_once(work, grows=grows)
    except HeldElsewhere:
        return None


async def await_present(term: Term, absent: frozenset[str]) -> None:
    """Waits until these servers' mounts have presented themselves, or until what earlier terms let them cache has ended."""
    state = term.state
    # By then all that was granted in earlier terms has ended, whoever holds it.
    if not await _await_bell(term, lambda: bool(absent & state.absent), term.caches_until):
        for server in absent & state.absent:
            state.presented(server)


async def await_shown(term: Term, absent: frozenset[str]) -> None:
    """As `await_present`, for whoever only wants to look: until what earlier terms let them be alone with has ended."""
    state = term.state
    if not await _await_bell(term, lambda: bool(absent & state.may_hold), term.holds_until):
        state.holds_ended(absent)


async def _await_bell(term: Term, waits: Callable[[], bool], until_s: float) -> bool:
    """False if it *waits* still when the time is over."""
    with trio.move_on_at(until_s):
        # One of them may have come while another was waited for: it is asked each time.
        while waits():
            with term.state.bells.listening(PRESENT) as bell:
                await bell.wait()
                term.check_in_office()
    return not waits()


async def sync(term: Term, _session: Session, _request: Sync) -> Done:
    """What was answered before is durable."""
    await term.store.sync()
    return Done()
