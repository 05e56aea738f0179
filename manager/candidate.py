"""This server's candidate for the office: it watches, stands, holds and resigns.

What to do is decided in `manager.rules.election`; here it is done. `Candidate.term` is there only from the moment nobody else
acts any more, until this candidate stops acting itself.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import trio
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from cluster.catalog_point import CatalogMemory, CatalogPoint, refusal
from cluster.clock import monotonic_s
from cluster.config import ServerConfig
from cluster.counters import Counters, Sample, counter, counters, gauge
from cluster.errors import GodwitError, ProtocolError, Refused, Unavailable, error_text, own_error
from cluster.events import EventKind
from cluster.faults import faults
from cluster.messages import (
    AskAuthority,
    AskCatalog,
    AskHearing,
    AskOffice,
    Authorities,
    CatalogSeen,
    Elsewhere,
    Hearing,
    Join,
    OfficeInfo,
    Ping,
    Pong,
)
from cluster.service import SERVICE
from cluster.tending import tended
from cluster.trust.credentials import Credentials
from manager.catalog.engines import retrying, write_transaction
from manager.catalog.events import note
from manager.catalog.faults import reason_of
from manager.catalog.identity import read_point
from manager.catalog.office import Roll, depose_office, read_office, read_roll, resign_office, take_office
from manager.catalog.room import Need, Room
from manager.catalog.store import Store
from manager.changes.authorities import Believed, read_authorities
from manager.changes.epochs import read_revoked
from manager.own_certificate import OwnCertificate
from manager.requests.figures import Figures
from manager.rules.election import (
    ASK_PART,
    EXTEND_PART,
    WATCH_PART,
    Ask,
    OfficeRow,
    Stand,
    Taken,
    answered,
    decide,
    elected,
    hears,
    hears_for,
    is_decided,
    last_extension_s,
    lasts_at_first,
    may_begin,
    refused,
    safe_until,
    saw,
    stepped_aside,
    watching,
)
from manager.term import Term
from manager.workers.authorities import authorities_loop
from manager.workers.backups import backup_loop
from manager.workers.damage import damage_loop
from manager.workers.events import event_loop
from manager.workers.housekeeping import forget_replies_loop, reap_loop, scan_loop, tick_loop
from manager.workers.members import requeue_loop
from manager.workers.migrations import migrate_loop
from manager.workers.office import Extender
from manager.workers.prevote import Line, ask_catalog, ask_hearing
from manager.workers.shortfalls import shortfall_loop
from manager.workers.term_end import end_when_asked, end_when_over, keep_going
from manager.workers.volume_scans import volume_scan_loop

log = logging.getLogger(__name__)

IN_OFFICE = gauge("godwit_in_office", "Whether this server is the manager: 1 or 0. At most one is.", "server")
TERM = gauge("godwit_term", "Number of the newest term that the candidate knows of: it grows with each change of managers.")
ELECTIONS = counter(
    "godwit_elections_total",
    "How often the candidate stood for the office: `refused` are those in which others heard a manager.",
    "outcome",
)
CATALOG_FAULT = gauge("godwit_catalog_fault", "Whether the catalog's disk or database stands in the way of changes: 1 or 0.")

_OUTCOMES = {Taken.UNCHANGED: "won", Taken.DEPOSED: "won", Taken.LOST: "lost", Taken.UNKNOWN: "unknown"}

REMEMBER_S = 5.0  # between saves; what was seen since the last one is unknown after a crash
ASK_CATALOG_S = 1.0  # for others to answer when this process starts; who does not is not waited for


class Lasting(NamedTuple):
    """When the taking of an office began, how long the office lasts from then on, and how long it did with the beat before."""

    started_s: float
    lasts_s: float
    lasted_s: float


class Candidate:
    """This server's candidate for the office."""

    def __init__(self, config: ServerConfig, credentials: Credentials, writer: Engine, reader: Engine) -> None:
        self.term: Term | None = None  # that is answered in; None while this candidate is not in office
        self._held: Term | None = None  # taken, perhaps not begun yet
        self._began_s: float | None = None  # when it began to answer
        self._config = config  # of this server
        self._credentials = credentials  # of its manager
        self._certificate = OwnCertificate(config, credentials, self._serving, self._holder)
        self._term_s = config.manager.term_s  # configured length of a term, in seconds
        self._writer = writer  # engine for transactions
        self._reader = reader  # engine for reads
        self._view = watching(self._term_s, _draw(), monotonic_s())  # of the office, for `manager.rules.election`
        self._roll = Roll()  # who may stand
        self._can_read = True  # the catalog answered last time
        self._memory = CatalogMemory(config.state, "manager")  # how far this server has seen the catalog come
        self._catalog_refused = False  # True: nothing is written into it any more
        self._counters = Counters()  # of the candidate, in office or not
        self._figures = Figures()  # of the network, while it is in office
        self.room = Room(writer)  # on the catalog's disk; shared by all terms of this candidate
        self._count()

    def _count(self) -> None:
        self._elections = {outcome: self._counters.cell(ELECTIONS, outcome) for outcome in ("won", "lost", "unknown", "refused")}
        self._counters.follow_each(IN_OFFICE, lambda: {self._config.server: float(self._serving() is not None)})
        self._counters.follow(TERM, lambda: 0 if self._view.row is None else self._view.row.term)
        self._counters.follow(CATALOG_FAULT, lambda: float(self.room.fault is not None or not self._can_read))

    async def samples(self) -> list[Sample]:
        """What a scraper is told: in office, of the network, too."""
        figures = [] if self._serving() is None else await self._figures.fresh()
        term = self._serving()
        of_term = [] if term is None else [*term.state.leases.counters.samples(), *figures]
        return [*counters.samples(), *self._counters.samples(), *of_term]

    # ------------------------------------------------------------------------------------------------ being asked

    def describe_manager(self) -> str:
        """Who holds the office, as far as this candidate knows."""
        row = self._view.row
        if row is None or row.vacant:
            return f"{self._config.server} is not the manager; nobody is at the moment"
        return f"{self._config.server} is not the manager; the last one it saw is {row.server} at {row.address}"

    def answer(self, request: Ping | AskHearing | AskCatalog | AskOffice | AskAuthority | Join) -> Any:
        """Answers what candidates and clients ask of any candidate, in office or not."""
        if isinstance(request, Join):
            return Elsewhere(self._pong().address)
        if isinstance(request, AskAuthority):
            return Authorities(self._credentials.authorities)
        if request.cluster != self._config.cluster:
            raise ProtocolError(f"{self._config.server} is of cluster {self._config.cluster!r}, not of {request.cluster!r}")
        if isinstance(request, Ping):
            return self._pong()
        if isinstance(request, AskCatalog):
            return CatalogSeen(self._config.server, self._memory.point)
        if isinstance(request, AskHearing):
            hearing = True if self._is_holder() else hears_for(self._view, request.term, monotonic_s())
            if hearing is None:
                raise Unavailable(f"{self._config.server} has not listened for long enough")
            return Hearing(self._config.server, hearing)
        return self._describe_office()

    def _pong(self) -> Pong:
        held = self._in_office()
        if held is not None:
            return Pong(self._config.server, held.number, True, self._config.manager.listen)
        row = self._view.row or OfficeRow(0, "", "", 0)
        fault = self.room.fault
        trouble = (0, "") if fault is None else (fault.errno, str(fault))
        return Pong(self._config.server, row.term, False, "" if row.vacant else row.address, *trouble)

    def _in_office(self) -> Term | None:
        """The term that this candidate acts in now."""
        return self._held if self._held is not None and self._held.in_office else None

    def _is_holder(self) -> bool:
        return self._in_office() is not None

    def _describe_office(self) -> OfficeInfo:
        now = monotonic_s()
        row = self._view.row or OfficeRow(0, "", "", 0)
        held = self._in_office()
        return OfficeInfo(
            server=self._config.server,
            in_office=held is not None,
            in_office_s=0.0 if held is None or self._began_s is None else now - self._began_s,
            hears=True if held is not None else hears(self._view, now),
            manager=row.server if held is None else self._config.server,
            term=row.term if held is None else held.number,
            beat=row.beat,
            address=self._config.manager.listen if held is not None else row.address if row.server else "",
            candidates=self._addresses(),
        )

    def _addresses(self) -> list[str]:
        return sorted({self._config.manager.listen, *self._config.managers, *self._roll.members} - self._roll.left)

    # --------------------------------------------------------------------------------------- watching and standing

    async def run(self) -> None:
        """Watches the office, and holds it when it gets it, for ever.

        Raises `Refused` for a catalog that is another than what this server or a member has worked with, or older.
        """
        self._memory.load()
        await self._look()
        await self._compare_with_others()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tended, partial(self._ping_loop, nursery))
            nursery.start_soon(tended, self._remember_loop)
            nursery.start_soon(tended, self._certificate.renewal_loop)
            while True:
                await self._take_turn()
                SERVICE.status(self.describe_manager() if self._can_read else "cannot read the catalog")
                await self._pause()

    def _serving(self) -> Term | None:
        """The term that this candidate answers in now."""
        return self.term if self.term is not None and self.term.in_office else None

    def _holder(self) -> str:
        """Where who is in office is. Raises `Unavailable`."""
        row = self._view.row
        if row is None or row.vacant or self._is_holder():
            raise Unavailable("nobody is in office")
        return row.address

    async def _take_turn(self) -> None:
        """Looks, and acts: whatever goes wrong in that, also in a whole term, the next turn comes."""
        try:
            if await self._look():
                await self._act()
        except Exception as error:
            if isinstance(error, ExceptionGroup):
                error = own_error(error) or error
            if isinstance(error, Refused):
                raise error from None  # this catalog is not to be worked with
            faults.unexpected(log, "of the candidate", error)

    async def _pause(self) -> None:
        await trio.sleep(self._term_s * WATCH_PART * random.uniform(0.8, 1.2))  # noqa: S311

    async def _ping_loop(self, nursery: trio.Nursery) -> None:
        with Line(self._credentials, self._term_s * ASK_PART, nursery) as line:
            while True:
                row = self._view.row
                # Nobody has to be pinged while this candidate holds the office, or nobody does.
                if self._held is None and row is not None and not row.vacant:
                    # Before it is sent: the holder was in office at some time after that.
                    sent_s = monotonic_s()
                    pong = await line.ping(row.address)
                    if pong is not None:
                        self._view = answered(self._view, pong, sent_s)
                await self._pause()

    async def _look(self) -> bool:
        def ask() -> tuple[OfficeRow, Roll, dict[str, int], Believed, CatalogPoint]:
            with self._reader.connect() as connection:
                # In this order: the row, which elections go by, is not newer than the point that was checked.
                row, roll, revoked = read_office(connection), read_roll(connection), read_revoked(connection)
                return row, roll, revoked, read_authorities(connection), read_point(connection)

        try:
            # A read that hangs must not keep this process from ending: the thread is left behind, and changes nothing.
            row, self._roll, revoked, believed, point = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except SQLAlchemyError as error:
            if self._can_read:
                log.warning("cannot read the catalog: %s", reason_of(error))
            self._can_read = False
            self.room.failed(error)
            return False
        self._can_read = True
        # Before the row is believed: what another catalog says of the office means nothing.
        self._check_catalog(point)
        before = self._view.row
        if self._held is None and before is not None and before.beat != row.beat:
            self.room.others_write()
        self._view = saw(self._view, row, monotonic_s())
        await self._certificate.heed(revoked)
        await self._certificate.follow(believed)
        return True

    # ------------------------------------------------------------------------------------------------- the catalog

    def _check_catalog(self, point: CatalogPoint) -> None:
        """Raises `Refused` for a catalog that this server must not work with; nothing is written into it from then on."""
        try:
            self._memory.check(point, self._config.server)
        except Refused:
            self._catalog_refused = True
            raise
        if self._held is not None:
            self._held.saw(point)

    async def _compare_with_others(self) -> None:
        """Asks the other candidates once how far the catalog had come: this server may have been away, or be new."""
        others = {address for address in self._addresses() if address != self._config.manager.listen}
        answers = await ask_catalog(others, AskCatalog(self._config.cluster), self._credentials, ASK_CATALOG_S)
        # Looked at after they have answered: one of them may have taken the office in the meantime.
        if not await self._look() or (point := self._memory.point) is None:
            return  # the catalog does not answer
        for server, known in answers.items():
            if (error := refusal(known, point, server)) is not None:
                self._catalog_refused = True
                raise error

    async def _remember_loop(self) -> None:
        """Remembers durably how far the catalog has come: at once in a new term, and every few seconds."""
        saved_s, saved_term = -REMEMBER_S, -1
        while True:
            point = self._memory.point
            if point is not None and (point.term != saved_term or monotonic_s() - saved_s >= REMEMBER_S):
                # Before the wait: what is seen meanwhile is saved in the next round.
                saved_s, saved_term = monotonic_s(), point.term
                await trio.to_thread.run_sync(self._remember, point)
            await self._pause()

    def remember(self) -> None:
        """Remembers durably how far the catalog had come when this process ended. Blocks."""
        if self._memory.point is not None and not self._catalog_refused:
            self._remember(self._memory.point)

    def _remember(self, point: CatalogPoint) -> None:
        # What a power failure may take back must not be remembered: the catalog would count as an older one.
        try:
            if self.room.log is not None:
                self.room.log.sync_if_there()
        except OSError as error:
            log.warning("cannot remember how far the catalog has come, as its log cannot be synced: %s", error_text(error))
            return
        self._memory.save(point)

    # -------------------------------------------------------------------------------------------------- standing

    async def _act(self) -> None:
        if self._config.manager.listen in self._roll.left:
            return  # a server that has left stands no more; whoever is in office lets it back in
        action = decide(self._view, monotonic_s())
        stand = await self._ask(action) if isinstance(action, Ask) else action
        if not isinstance(stand, Stand):
            return
        # Before the statement: from then on others may count the new term.
        started = monotonic_s()
        lasts_s = lasts_at_first(stand, self._term_s)
        taken, lasted_s = await self._take(stand, lasts_s)
        self._elections[_OUTCOMES[taken]].value += 1
        if taken in (Taken.UNCHANGED, Taken.DEPOSED):
            # Also where the holder had to be deposed: the term is this candidate's, though it may not act yet
            # (`_wait_for_predecessor`).
            await self._hold(stand, taken, Lasting(started, lasts_s, lasted_s))

    async def _ask(self, ask: Ask) -> Stand | None:
        """Asks the members whether they hear a manager."""
        addresses = set(self._addresses())
        request = AskHearing(self._config.cluster, ask.row.term)
        others = addresses - {self._config.manager.listen}
        answers = await ask_hearing(
            others,
            request,
            self._credentials,
            self._term_s * ASK_PART,
            lambda got: is_decided(self._of_others(got), len(addresses)),
        )
        answers = self._of_others(answers)
        said = ", ".join(f"{server} {'does' if heard else 'does not'}" for server, heard in sorted(answers.items()))
        log.info("hears no manager in term %d; of %d members others say: %s", ask.row.term, len(addresses), said or "nothing")
        if elected(ask, answers, len(addresses)):
            return ask.stand()
        self._elections["refused"].value += 1
        self._view = refused(self._view, monotonic_s())
        return None

    def _of_others(self, answers: Any) -> dict[str, bool]:
        return {server: heard for server, heard in answers.items() if server != self._config.server}

    async def _take(self, stand: Stand, lasts_s: float) -> tuple[Taken, float]:
        """Takes the office. Returns how that ended, and how many seconds it lasted with the last beat of the holder before."""
        mine = (self._config.server, self._config.manager.listen, lasts_s)

        def take() -> tuple[Taken, float]:
            with write_transaction(self._writer) as connection:
                if take_office(connection, stand.row, *mine):
                    self._note_taken(connection, stand.row)
                    return Taken.UNCHANGED, stand.row.lasts_s
                # If the holder has only extended it since the row was seen, the term is taken all the same: by its number
                # alone.
                if not stand.clear and depose_office(connection, stand.row.term, *mine):
                    self._note_taken(connection, stand.row)
                    return Taken.DEPOSED, read_office(connection).lasts_s
                return Taken.LOST, 0.0

        try:
            taken, lasted_s = await trio.to_thread.run_sync(self.room.run, partial(retrying, take), Need.OFFICE)
        except SQLAlchemyError as error:
            # The next term is taken when it runs out, or by who finds the row as it was.
            why = f"cannot tell whether the office was taken: {reason_of(error)}"
            faults.note(log, "the office could not be taken", why, level=logging.WARNING)
            self._reopen()
            return Taken.UNKNOWN, 0.0
        return taken, max(self._term_s, lasted_s)

    def _note_taken(self, connection: Connection, before: OfficeRow) -> None:
        note(connection, EventKind.OFFICE_TAKEN, server=self._config.server, term=before.term + 1, before=before.server)

    def _reopen(self) -> None:
        """Has all connections made anew: SQLite opens for reading alone what it cannot write then, and keeps to that."""
        # Both at once: as long as one is left, SQLite shares with it how the index of its log was opened.
        self._writer.dispose()
        self._reader.dispose()

    # --------------------------------------------------------------------------------------------------- in office

    async def _hold(self, stand: Stand, taken: Taken, lasting: "Lasting") -> None:
        """Holds the term after *stand*'s until it is over; when this returns, nothing of the term acts any more."""
        number, taken_s = stand.row.term + 1, monotonic_s()
        log.info("%s has the office, term %d", self._config.server, number)
        clear = stand.clear
        try:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                deposed = partial(self._deposed, scope)
                store = Store(self._writer, self._reader, number, on_deposed=deposed, in_office=self._is_holder, room=self.room)
                deadline, before_s = safe_until(lasting.started_s, lasting.lasts_s), last_extension_s(stand, taken, taken_s)
                held = self._held = Term(
                    self._config, store, deadline, lasting.started_s, before_s, on_revoked=self._credentials.revoke
                )
                nursery.start_soon(store.run)
                nursery.start_soon(end_when_over, held, scope)
                nursery.start_soon(end_when_asked, held, scope)
                nursery.start_soon(partial(tended, self._look_loop, ends=(Refused,)))
                with self._extending(held, lasting.lasts_s, deposed, nursery) as extender:
                    await self._wait_for_predecessor(stand, taken, taken_s, lasting.lasted_s)
                    # From here on it has begun, so it may vacate the office; before, a predecessor might still act.
                    clear = True
                    # Before anybody is answered: the row may get shorter again.
                    extender.began()
                    await self._serve(held, nursery)
                    await trio.sleep_forever()
        finally:
            await self._end(number, clear=clear)

    @contextmanager
    def _extending(self, held: Term, lasts_s: float, deposed: Callable[[], None], nursery: trio.Nursery) -> Iterator[Extender]:
        """While inside, the office is extended."""
        token = trio.lowlevel.current_trio_token()

        def lost() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._lost, held, deposed)

        extender = Extender(self._reader, self.room, held.number, self._term_s, lasts_s, held, lost)
        nursery.start_soon(self._go_round, extender)
        extender.start()
        try:
            yield extender
        finally:
            extender.stop()

    async def _go_round(self, extender: Extender) -> None:
        """Shows that the event loop works."""
        while True:
            extender.went_round()
            await trio.sleep(self._term_s * EXTEND_PART / 2)

    def _lost(self, held: Term, deposed: Callable[[], None]) -> None:
        if self._held is held:
            log.warning("the office was taken by another, term %d is over", held.number)
            deposed()

    def _deposed(self, scope: trio.CancelScope) -> None:
        if self._held is not None:
            self._held.end()
        scope.cancel()

    async def _end(self, number: int, *, clear: bool) -> None:
        """Nothing of the term runs any more; if it had begun, that is said in the row."""
        held, served = self._held, self.term
        # Before any `await` here: from now on no request is answered in this term.
        self._held = self.term = self._began_s = None
        # In office it has not listened to anybody: it begins to watch anew.
        self._view = replace(
            watching(self._term_s, _draw(), monotonic_s()),
            aside_term=self._view.aside_term,
            aside_until_s=self._view.aside_until_s,
        )
        if held is not None:
            held.end()
            if held.leaving.is_set():
                self._view = stepped_aside(self._view, number, monotonic_s())
        if served is not None:
            served.state.wake_all()
        if clear and not self._catalog_refused and (held is None or held.refusal is None):
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._resign, number)
        log.info("%s is not the manager any more, term %d is over", self._config.server, number)

    async def _wait_for_predecessor(self, stand: Stand, taken: Taken, taken_s: float, lasted_s: float) -> None:
        """Returns when nobody acts in an earlier term any more."""
        row = stand.row
        while not may_begin(stand, taken, taken_s, row.stopped, monotonic_s(), lasted_s):
            # `_look_loop` reads the row meanwhile: what counts is `stopped`, which the predecessor raises when it has ended.
            await trio.sleep(self._term_s * WATCH_PART / 2)
            row = self._view.row or row

    async def _look_loop(self) -> None:
        """The holder looks as well: at what its predecessor says, at the members."""
        while True:
            await self._look()
            await self._pause()

    async def _serve(self, term: Term, nursery: trio.Nursery) -> None:
        """Begins to answer; the work of the term goes on in *nursery*."""
        try:
            # Nobody is answered meanwhile; the office may be lost while this runs, and then `_hold` cancels it.
            await term.begin()
        except (SQLAlchemyError, GodwitError) as error:
            log.error("cannot begin term %d: %s", term.number, error)
            term.leave()
            return
        except Exception as error:  # a row that no Godwit wrote: the office is for who can read the catalog
            faults.unexpected(log, "while a term began", error)
            term.leave()
            return
        # From here on requests are answered.
        self.term = term
        self._began_s = monotonic_s()
        log.info("%s is the manager, term %d", self._config.server, term.number)
        SERVICE.status(f"is the manager, term {term.number}")
        loops = (
            tick_loop,
            reap_loop,
            scan_loop,
            volume_scan_loop,
            damage_loop,
            shortfall_loop,
            requeue_loop,
            migrate_loop,
            forget_replies_loop,
            authorities_loop,
            event_loop,
            backup_loop,
            self._figures.take_loop,
        )
        for loop in loops:
            # Each by itself: one that fails is begun again, and holds up no other.
            nursery.start_soon(keep_going, loop, term)

    def _resign(self, number: int) -> None:
        def resign() -> None:
            with write_transaction(self._writer) as connection:
                resign_office(connection, number)
                row = read_office(connection)
                # Unless somebody has followed.
                if row.term == number and row.vacant:
                    note(connection, EventKind.OFFICE_LEFT, server=self._config.server, term=number)

        try:
            self.room.run(resign, Need.OFFICE)
        except SQLAlchemyError as error:
            log.info("the office was not given back, it runs out: %s", reason_of(error))


def _draw() -> float:
    return random.random()  # noqa: S311
