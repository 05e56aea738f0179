"""Sends what this server's mounts had not told the manager when they died (docs/held-directories.md).

Until that is done the catalog lacks names and inodes whose objects are here. So whoever judges by the catalog what mounts have
left behind calls `send` between the manager's answer and the deed: a mount that the manager takes for dead has died before.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import trio

from agent.loop import Outcome
from cluster.config import ServerConfig
from cluster.counters import counter, counters
from cluster.errors import GodwitError, Malformed, Unavailable, error_text
from cluster.journal import JOURNALS, DeadJournal, dead_journals, encode_record, journal_owner, lost_problem, lost_text
from cluster.messages import ApplyRecords, Record, RecordsApplied
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

LOOK_S = 1.0
RECORDS_MAX = 512  # in one message, which is one transaction
RECORDS_MAX_BYTES = 1024 * 1024  # in one message, of which a frame takes four times as much
MANAGER_TIMEOUT_S = 30.0

RECORDS_SENT = counter("godwit_dead_journal_records_total", "Changes that the agent has sent since their mount had died.")
RECORDS_LOST = counter("godwit_dead_journal_records_lost_total", "Changes of mounts that had died which were not applied.")

_sent, _lost = counters.cell(RECORDS_SENT), counters.cell(RECORDS_LOST)

Numbered = Sequence[tuple[int, Record]]  # records with their sequences


class DeadJournals:
    """Worker: sends each journal of a dead mount of this server, and removes it when the manager has all of it.

    One that the manager refuses, or that cannot be read, is left where it is, for people and for the next agent. It holds up
    nothing; `alarms` has a sentence on each, by its session.
    """

    name = "journals of dead mounts"

    def __init__(self, config: ServerConfig, session: ManagerSession, folder: Path = JOURNALS) -> None:
        self._find = partial(_found, journal_owner(config.cluster, config.server), config.state, folder)
        self._session = session
        self._lock = trio.Lock()  # one at a time: a journal that is being sent looks like that of a living mount
        self.alarms: dict[int, str] = {}
        self._lost = 0  # changes that were sent and not applied

    @property
    def problems(self) -> list[str]:
        """What whoever looks after the server should know."""
        if not self._lost:
            return list(self.alarms.values())
        return [*self.alarms.values(), lost_problem(self._lost, "of mounts that had died", "its agent")]

    async def run_once(self) -> Outcome:
        await self.send()
        return Outcome.IDLE

    async def send(self) -> int:
        """Sends all that there are; returns how many the manager was told of: then it may know more than it did before.

        Raises `Unavailable` when the manager does not take them now, `OSError` when nobody can look for them.
        """
        async with self._lock:
            found = await trio.to_thread.run_sync(self._find)
            try:
                there = {dead.session for dead in found}
                self.alarms = {session: text for session, text in self.alarms.items() if session in there}
                return sum([await self._send(dead) for dead in found if dead.session not in self.alarms])
            finally:
                for dead in found:
                    dead.close()

    async def _send(self, dead: DeadJournal) -> bool:
        """Whether the manager was told anything."""
        try:
            records, damaged_bytes = await trio.to_thread.run_sync(dead.read)
        except (OSError, Malformed) as error:
            self._give_up(dead, f"cannot be read: {error_text(error)}")
            return False
        refusal = await self._tell(dead.session, records)
        # Nothing is lost with an empty one, whatever is wrong with the session.
        if records and refusal:
            self._give_up(dead, f"with {len(records)} changes was not taken: {refusal}")
            return True
        try:
            await trio.to_thread.run_sync(dead.remove)
        except OSError as error:
            self._give_up(dead, f"was sent, and cannot be removed: {error_text(error)}")
        if records:
            log.warning(
                "a mount died before it had sent its last %d changes: they were sent (session %d)", len(records), dead.session
            )
        if damaged_bytes:
            log.warning("session %d: %d bytes at the end of its journal were no whole change", dead.session, damaged_bytes)
        return True

    def _give_up(self, dead: DeadJournal, why: str) -> None:
        text = f"the journal of a mount that died (session {dead.session}) {why}"
        log.error("%s; it is left in %s", text, dead.where)
        self.alarms[dead.session] = text

    async def _tell(self, session: int, records: Numbered) -> str:
        """Sends all records, and that there are no more; returns why the manager will not have them, or an empty string.

        Raises `Unavailable`: then they can be sent again, by anybody to any manager, which passes over what it has.
        """
        parts = list(in_parts(records)) or [()]
        for number, part in enumerate(parts, 1):
            final = number == len(parts)
            request = ApplyRecords(
                session,
                part[0][0] if part else 1,
                [record for _sequence, record in part],
                durable=final,  # the journal may be on the disk: it goes when the catalog is, too
                more=not final,
                final=final,
            )
            try:
                answer = await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)
            except Unavailable:
                raise
            except GodwitError as error:
                return str(error) or type(error).__name__
            _sent.value += len(part)
            self._note_lost(session, part, answer)
            if part and answer.last < part[-1][0]:
                return f"the catalog has them only up to number {answer.last} of {part[-1][0]}"
        return ""

    def _note_lost(self, session: int, part: Numbered, answer: RecordsApplied) -> None:
        sent = dict(part)
        for lost in answer.lost:
            _lost.value += 1
            self._lost += 1
            log.error("session %d: lost with its mount: %s", session, lost_text(lost, sent.get(lost.sequence)))


def in_parts(records: Numbered) -> Iterator[Numbered]:
    """The records as they are sent: in order, none in two messages, and no gap in one."""
    part: list[tuple[int, Record]] = []
    size = 0
    for sequence, record in records:
        length = len(encode_record(record))
        if part and (sequence != part[-1][0] + 1 or len(part) == RECORDS_MAX or size + length > RECORDS_MAX_BYTES):
            yield part
            part, size = [], 0
        part.append((sequence, record))
        size += length
    if part:
        yield part


def _found(owner: str, state: str, folder: Path) -> list[DeadJournal]:
    found: list[DeadJournal] = []
    try:
        # One by one: those that are locked already are to be let go when the next cannot be looked at.
        for dead in dead_journals(owner, state, folder):
            found.append(dead)  # noqa: PERF402
    except OSError:
        for dead in found:
            dead.close()
        raise
    return found
