"""Transactions that change a server's state, and the work that follows.

The catalog is first, the memory follows (`tx.after`): so a new manager knows who is down, drained or gone. Whoever stops or
begins to count has the files of its volumes looked at again in the background; nothing is copied here.
"""

import logging
from functools import partial
from typing import Any

from sqlalchemy import insert, select, update

from cluster.clock import file_time_ns, monotonic_s
from cluster.events import EventKind
from cluster.membership import MEANINGS, UP, Event, ServerState, Standing, VolumeStanding, standing_of, stored_state, transition
from cluster.messages import ROOT_INO
from manager.catalog.events import note
from manager.catalog.schema import servers, volumes
from manager.catalog.store import Transaction
from manager.changes.namespace import queue_scan
from manager.changes.tasks import release_claims
from manager.changes.volume_scans import queue_volume_scan
from manager.memory.claims import Claims
from manager.memory.state import DOWN, State

log = logging.getLogger(__name__)

AWAY = (ServerState.DOWN, ServerState.LOST)  # whose queues nobody works off

_TOLD = {
    Event.HEARD: EventKind.SERVER_BACK,
    Event.SILENT_TOO_LONG: EventKind.SERVER_DOWN,
    Event.DRAIN: EventKind.SERVER_DRAINING,
    Event.UNDRAIN: EventKind.SERVER_UNDRAINED,
    Event.LOSE: EventKind.SERVER_LOST,
    Event.REMOVE: EventKind.SERVER_LEFT,
    Event.ADD: EventKind.SERVER_READMITTED,
}


def stored_standing(tx: Transaction, server: str) -> Standing:
    """The server's state as the catalog has it. A server without a row gets one, and is up."""
    row = tx.execute(select(servers.c.state, servers.c.draining).where(servers.c.server == server)).one_or_none()
    if row is None:
        # The memory may have met it (`Members.met`) before its introduction was stored.
        tx.execute(insert(servers), {"server": server, "joined_ns": file_time_ns()})
        return UP
    return standing_of(row.state, wanted_empty=bool(row.draining))


def change_standing(tx: Transaction, state: State, claims: Claims, server: str, event: Event) -> Standing:
    """Applies *event* to a server that the memory knows, and queues the work that follows. Raises `IllegalTransition`."""
    old = stored_standing(tx, server)
    new = transition(old, event)
    # A repeat, or a report that something else has overtaken: no write, no scan.
    if new == old:
        return new
    since_ns = file_time_ns()
    values: dict[str, Any] = {"state": str(stored_state(new)), "draining": int(new.wanted_empty), "since_ns": since_ns}
    tx.execute(update(servers).where(servers.c.server == server).values(**values))
    # That it is silent for a moment never comes here.
    if event in _TOLD:
        note(tx.connection, _TOLD[event], server=server)
    # Everything below is in the transaction of the change: if the manager dies after it, its successor finds the scans queued.
    before, now = MEANINGS[old.state], MEANINGS[new.state]
    if (before.counts != now.counts and now.belongs) or new.state is ServerState.LOST:
        # By volume, not by directory: these files have a replica there, so an index finds them.
        for volume in state.members.of_server(server):
            queue_volume_scan(tx, state, volume)
    if now.accepts and not before.accepts:
        # Files that had no place for a copy meanwhile may have none here either: only a look at all of them finds them.
        queue_scan(tx, state, ROOT_INO)
    if not now.works:
        # Its tasks wait in the queue; a report that still comes finds another state, and is ignored.
        _take_back_claims(tx, state, claims, server)
    # Last of the effects: whoever is woken by it finds claims that have ended.
    tx.after(partial(_changed, state, server, new, since_ns))
    return new


def _take_back_claims(tx: Transaction, state: State, claims: Claims, server: str) -> None:
    taken = claims.of_server(server)
    release_claims(tx, state, taken)
    # In memory only once the catalog has it: an undone transaction leaves the deadlines running.
    tx.after(lambda: claims.end_all(taken))


def _changed(state: State, server: str, standing: Standing, since_ns: int) -> None:
    log.info("%s is %s", server, standing)
    # Before the bells: who is woken reads the members.
    state.members.changed(server, standing, since_ns, monotonic_s())
    if standing.state in AWAY:
        state.bells.ring(DOWN)
    if MEANINGS[standing.state].works:
        state.ring(server)


def change_volume(tx: Transaction, state: State, volume: int, standing: VolumeStanding) -> None:
    """Changes a volume's standing; all files with a replica on it are looked at in the background."""
    tx.execute(update(volumes).where(volumes.c.volume == volume).values(standing=str(standing)))
    queue_volume_scan(tx, state, volume)
    _note_volume(tx, state, volume, standing)
    if standing is VolumeStanding.IN:
        queue_scan(tx, state, ROOT_INO)  # files that had no place for a copy may have one now
    tx.after(partial(_volume_changed, state, volume, standing))


def _note_volume(tx: Transaction, state: State, number: int, standing: VolumeStanding) -> None:
    kinds = {
        VolumeStanding.IN: EventKind.VOLUME_BACK,
        VolumeStanding.OUT: EventKind.VOLUME_OUT,
        VolumeStanding.LOST: EventKind.VOLUME_LOST,
    }
    volume = state.members.find(number)
    if volume is not None:
        note(
            tx.connection,
            kinds[standing],
            server=volume.server,
            volume=number,
            path=volume.path,
            condition=volume.condition,
        )


def _volume_changed(state: State, volume: int, standing: VolumeStanding) -> None:
    log.warning("volume %d is %s", volume, standing)
    state.members.volume_changed(volume, standing)
    state.bells.ring(DOWN)
