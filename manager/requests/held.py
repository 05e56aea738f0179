"""Held directories: who may be alone in one, and that everybody else waits until it was called back.

See docs/held-directories.md. What the routes say that a request reads (`Route.reads`), and the nodes that an answer brings, are
called back from whoever is alone with them before the request is answered. Agents do not wait: they work from what is committed.
"""

import stat
from collections.abc import Iterable
from functools import partial
from typing import Any

from sqlalchemy import Connection

from cluster.clock import monotonic_s
from cluster.messages import Entry, HeldDirectory, Hold, Node
from cluster.trust.identity import Role
from manager.catalog.inodes import InodeRow, children, find_inodes, get_live_directory, node_of
from manager.memory.holds import SHARED_S
from manager.memory.mutations import QUIET_S, Held, Mutation
from manager.memory.notes import parents_of
from manager.memory.sessions import Session
from manager.requests.mutations import await_shown
from manager.term import Term

HOLD_MAX = 10_000  # names of a directory that is held
HOLD_BYTES = 3_000_000  # of names and nodes, so that all goes into one frame
_ENTRY_BYTES = 220  # of a node on the wire, and what is around it
_INLINE_MAX = 500  # names that are read in the event loop
_LATER_S = 5.0  # for what does not change by itself


# ------------------------------------------------------------------------------------------------ nobody else is told


def inodes_read(reads: tuple[str, ...], request: Any) -> list[int]:
    """The inodes that a request names in these fields."""
    found: list[int] = []
    for name in reads:
        value = getattr(request, name)
        found += value if isinstance(value, list) else [value]
    return found


def is_hidden(term: Term, session: Session, inodes: Iterable[int]) -> bool:
    """Whether the session has to wait before it is told of these: somebody else is alone with one of them, or may be."""
    state = term.state
    if session.role == Role.AGENT or not state.may_hide:
        return False
    # In the grace time of a new manager the catalog is asked: that is the other way's.
    return bool(state.may_hold and state.notes.any_held) or bool(state.alone_elsewhere(inodes, session, monotonic_s()))


async def reveal(term: Term, session: Session, inodes: Iterable[int]) -> bool:
    """Returns when nobody else is alone with any of these any more; whether that took any waiting."""
    state, wanted = term.state, list(inodes)
    waited = False
    while session.role != Role.AGENT and state.may_hide:
        unknown = await _unknown(term, wanted) if session.role == Role.ADMIN else []
        # Once is enough: a journal is sent in order.
        new_in = [] if waited else _made_in(term, unknown)
        held = state.alone_elsewhere(wanted + new_in, session, monotonic_s())
        absent = state.may_hold
        # Which numbers they were given is known when they have presented themselves.
        if absent and not unknown:
            absent = await term.store.read(partial(_absent_holders, term=term, session=session, inodes=wanted))
        if not held and not absent:
            break
        waited = True
        # Meanwhile others may be let alone with them: all is looked at again.
        await state.recalls.take_back_alone(held)
        await await_shown(term, absent)
        term.check_in_office()
    return waited


async def _unknown(term: Term, inodes: list[int]) -> list[int]:
    """Those that the catalog does not have.

    A mount asks for what it has found in a directory, which was called back then; a person gives any number that `ls -i` shows.
    """
    known = await term.store.read(partial(find_inodes, inos=inodes))
    return [ino for ino in inodes if ino not in known]


def _made_in(term: Term, inodes: list[int]) -> list[int]:
    """The directories in which mounts are alone that may have made these."""
    if not inodes:
        return []
    makers = {session.number for session in term.state.sessions.all() if any(session.may_use(ino) for ino in inodes)}
    held = term.state.leases.held(monotonic_s())
    return [lease.ino for lease in held if lease.is_directory and lease.session in makers]


def _absent_holders(connection: Connection, term: Term, session: Session, inodes: list[int]) -> frozenset[str]:
    return term.state.holding(connection, inodes, session)


# ------------------------------------------------------------------------------------------------------------ holding


async def hold(term: Term, session: Session, request: Hold) -> HeldDirectory:
    """Lets the session be alone in a directory, if nobody else has been there just now."""
    wait_s = _wait_s(term, session, request.ino)
    everywhere = False
    if not await term.store.read(partial(_is_allowed, term=term, ino=request.ino)):
        wait_s, everywhere = _LATER_S, term.state.policies.is_one_for_all
    reply = HeldDirectory(wait_s=wait_s, everywhere=everywhere) if wait_s else await _hold(term, session, request.ino)
    holds = term.state.holds
    (holds.granted if reply.grant else holds.refused).value += 1
    return reply


def _is_allowed(connection: Connection, term: Term, ino: int) -> bool:
    get_live_directory(connection, ino)
    return term.state.policies.of_directory(connection, ino).names_held


async def call_back_below(term: Term) -> None:
    """A policy has changed: calls back all directories that may not be held any more, and waits for it."""
    state = term.state
    held = [lease for lease in state.leases.held(monotonic_s()) if lease.is_directory]
    policies = state.policies

    def ask(connection: Connection) -> list[Held]:
        return [Held(lease.ino, lease.session) for lease in held if not policies.of_directory(connection, lease.ino).names_held]

    if held:
        await state.recalls.take_back(await term.store.read_slowly(ask))


def _wait_s(term: Term, session: Session, ino: int) -> float:
    """For how long the session may not be alone in the directory, as far as the memory can tell; 0 if it may be now."""
    state, now = term.state, monotonic_s()
    if not session.watches or state.in_grace or state.absent or term.store.room.fault is not None:
        return _LATER_S
    if not state.leases.has_room(session):
        return _LATER_S
    # Who looked at it has given way to the change before this one: others have come since.
    shared_s = SHARED_S if state.leases.caching(ino, now, besides=session) else 0.0
    return max(shared_s, state.holds.wait_s(ino, now), state.mutations.quiet_in_s(ino, session.number, now))


async def _hold(term: Term, session: Session, ino: int) -> HeldDirectory:
    state = term.state
    mutation = Mutation(session, monotonic_s())
    try:
        # Claimed first: nobody is granted to cache it from here on.
        await state.recalls.take_back(state.mutations.claim(mutation, [ino]))
        await term.granting.note(term.store, session, [ino], held=True)
        began_s = mutation.began_s = monotonic_s()
        found = await _read(term, session, ino)
        # Others may have been there while somebody gave way.
        wait_s = _LATER_S if found is None else _wait_s(term, session, ino)
        if found is None or wait_s:
            return HeldDirectory(wait_s=wait_s)
        directory, rows, linked = found
        nodes = [node_of(row) for row in rows]
        # Directories are held by requests of their own; what has other names may be reached by these.
        alone = [
            node for node in {node.ino: node for node in nodes}.values() if not _is_directory(node) and node.ino not in linked
        ]
        grant = term.granting.hold(session, directory, alone, mutation, began_s, monotonic_s())
    finally:
        state.mutations.release(mutation)
    # It is asked for when others have come to rest; the wait of a recall that came meanwhile is known to who asks then.
    if grant is None or not term.state.sessions.is_live(session):
        return HeldDirectory(wait_s=max(QUIET_S, state.holds.wait_s(ino, monotonic_s())))
    entries = [Entry(row.name, row.cookie, node) for row, node in zip(rows, nodes, strict=True)]
    return HeldDirectory(directory, entries, grant)


async def _read(term: Term, session: Session, ino: int) -> tuple[Node, list[InodeRow], set[int]] | None:
    """The directory, its entries, and those inodes that have names elsewhere; None if there are too many."""
    ask = partial(_names, term=term, session=session, ino=ino, now=monotonic_s())
    found = await term.store.read(partial(ask, limit=_INLINE_MAX))
    if found is None:
        found = await term.store.read_slowly(partial(ask, limit=HOLD_MAX))
    return found


def _names(
    connection: Connection, term: Term, session: Session, ino: int, now: float, limit: int
) -> tuple[Node, list[InodeRow], set[int]] | None:
    # The directory first: who changes its names after this was read is found by the claims.
    directory = node_of(get_live_directory(connection, ino))
    rows = children(connection, ino, 0, limit + 1)
    # Asked again: the policy may have changed while others gave way.
    if not _is_allowed(connection, term, ino):
        return None
    if len(rows) > limit or sum(len(row.name) + _ENTRY_BYTES for row in rows) > HOLD_BYTES:
        return None
    linked = {row.ino for row in rows if row.nlink > 1 and not _is_directory(row)}
    held = {ino} | {lease.ino for lease in term.state.leases.held(now) if lease.session == session.number}
    return directory, rows, {other for other in linked if not held.issuperset(parents_of(connection, other))}


def _is_directory(node: Node | InodeRow) -> bool:
    return stat.S_ISDIR(node.mode)
