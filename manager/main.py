"""The manager's process: a candidate that listens always, and answers while it holds the office.

What to do is decided in `manager.rules.election`; here it is done. `Candidate.term` is there only from the moment nobody else acts
any more, until this candidate stops acting itself.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import trio
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cluster.clock import monotonic_s
from cluster.config import ServerConfig
from cluster.errors import GodwitError, NotManager, ProtocolError, Unavailable, own_error
from cluster.messages import AskHearing, AskOffice, Elsewhere, Hearing, Join, ManagerRequest, OfficeInfo, Ping, Pong
from cluster.rpc.connection import listen
from manager.catalog.office import Roll, depose_office, extend_office, read_office, read_roll, resign_office, take_office
from manager.catalog.store import Store, make_engines, retrying, write_transaction
from manager.catalog.upgrade import migrate
from manager.membership import requeue_loop
from manager.migrating import migrate_loop
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
    is_settled,
    may_begin,
    refused,
    safe_until,
    saw,
    stepped_aside,
    watching,
)
from manager.service import Connection
from manager.term import Term
from manager.workers.housekeeping import forget_replies_loop, reap_loop, scan_loop, tick_loop
from manager.workers.prevote import Line, ask_hearing
from manager.workers.volume_scans import volume_scan_loop

log = logging.getLogger(__name__)

DATABASE_WAIT_S = 60.0
FAILED_LOOP_PAUSE_S = 1.0


class Candidate:
    """This server's candidate for the office."""

    def __init__(self, config: ServerConfig, writer: Engine, reader: Engine) -> None:
        self.term: Term | None = None
        self._held: Term | None = None
        self._began_s: float | None = None
        self._config = config
        self._term_s = config.manager.term_s
        self._writer = writer
        self._reader = reader
        self._view = watching(self._term_s, _draw(), monotonic_s())
        self._roll = Roll()
        self._can_read = True

    # ------------------------------------------------------------------------------------------------ being asked

    def describe_manager(self) -> str:
        """Who holds the office, as far as this candidate knows."""
        row = self._view.row
        if row is None or row.vacant:
            return f"{self._config.server} is not the manager; nobody is at the moment"
        return f"{self._config.server} is not the manager; the last one it saw is {row.server} at {row.address}"

    def answer(self, request: Ping | AskHearing | AskOffice | Join) -> Any:
        """What candidates and clients ask each candidate, whoever is in office."""
        if isinstance(request, Join):
            return Elsewhere(self._pong().address)
        if request.cluster != self._config.cluster:
            raise ProtocolError(f"{self._config.server} is of cluster {self._config.cluster!r}, not of {request.cluster!r}")
        if isinstance(request, Ping):
            return self._pong()
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
        return Pong(self._config.server, row.term, False, "" if row.vacant else row.address)

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
        """Watches the office, and holds it when it gets it, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping_loop, nursery)
            while True:
                if await self._look():
                    await self._act()
                await self._pause()

    async def _pause(self) -> None:
        await trio.sleep(self._term_s * WATCH_PART * random.uniform(0.8, 1.2))  # noqa: S311

    async def _ping_loop(self, nursery: trio.Nursery) -> None:
        with Line(self._config.cluster, self._term_s * ASK_PART, nursery) as line:
            while True:
                row = self._view.row
                if self._held is None and row is not None and not row.vacant:
                    sent_s = monotonic_s()
                    pong = await line.ping(row.address)
                    if pong is not None:
                        self._view = answered(self._view, pong, sent_s)
                await self._pause()

    async def _look(self) -> bool:
        def ask() -> tuple[OfficeRow, Roll]:
            with self._reader.connect() as connection:
                return read_office(connection), read_roll(connection)

        try:
            row, self._roll = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except SQLAlchemyError as error:
            if self._can_read:
                log.warning("cannot read the catalog: %s", error)
            self._can_read = False
            return False
        self._can_read = True
        self._view = saw(self._view, row, monotonic_s())
        return True

    async def _act(self) -> None:
        if self._config.manager.listen in self._roll.left:
            return  # a server that has left stands no more; whoever is in office lets it back in
        action = decide(self._view, monotonic_s())
        stand = await self._ask(action) if isinstance(action, Ask) else action
        if not isinstance(stand, Stand):
            return
        started = monotonic_s()
        taken = await self._take(stand)
        if taken in (Taken.AS_SEEN, Taken.DEPOSED):
            await self._hold(stand, taken, started)

    async def _ask(self, ask: Ask) -> Stand | None:
        """Asks the members whether they hear a manager."""
        addresses = set(self._addresses())
        request = AskHearing(self._config.cluster, ask.row.term)
        others = addresses - {self._config.manager.listen}
        answers = await ask_hearing(
            others, request, self._term_s * ASK_PART, lambda got: is_settled(self._of_others(got), len(addresses))
        )
        answers = self._of_others(answers)
        said = ", ".join(f"{server} {'does' if heard else 'does not'}" for server, heard in sorted(answers.items()))
        log.info("hears no manager in term %d; of %d members others say: %s", ask.row.term, len(addresses), said or "nothing")
        if elected(ask, answers, len(addresses)):
            return ask.stand()
        self._view = refused(self._view, monotonic_s())
        return None

    def _of_others(self, answers: Any) -> dict[str, bool]:
        return {server: heard for server, heard in answers.items() if server != self._config.server}

    async def _take(self, stand: Stand) -> Taken:
        server, address = self._config.server, self._config.manager.listen

        def take() -> Taken:
            with write_transaction(self._writer) as connection:
                if take_office(connection, stand.row, server, address):
                    return Taken.AS_SEEN
                if not stand.clear and depose_office(connection, stand.row.term, server, address):
                    return Taken.DEPOSED
                return Taken.LOST

        try:
            return await trio.to_thread.run_sync(retrying, take)
        except SQLAlchemyError as error:
            # The next term is taken when it runs out, or by who finds the row as it was.
            log.warning("cannot tell whether the office was taken: %s", error)
            return Taken.UNKNOWN

    # --------------------------------------------------------------------------------------------------- in office

    async def _hold(self, stand: Stand, taken: Taken, started: float) -> None:
        """Holds the term after *stand*'s until it is over; ends it so that nothing of it acts any more."""
        number, taken_s = stand.row.term + 1, monotonic_s()
        log.info("%s has the office, term %d", self._config.server, number)
        clear = stand.clear
        try:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                fenced = partial(self._fenced, scope)
                store = Store(self._writer, self._reader, number, on_fenced=fenced, in_office=self._is_holder)
                held = self._held = Term(self._config, store, safe_until(started, self._term_s))
                nursery.start_soon(store.run)
                nursery.start_soon(_guard, held, scope)
                nursery.start_soon(_leave, held, scope)
                nursery.start_soon(self._extend_loop, held)
                nursery.start_soon(self._look_loop)
                await self._wait_for_predecessor(stand, taken, taken_s)
                clear = True
                await self._serve(held, nursery)
        finally:
            await self._end(number, clear=clear)

    def _fenced(self, scope: trio.CancelScope) -> None:
        if self._held is not None:
            self._held.end()
        scope.cancel()

    async def _end(self, number: int, *, clear: bool) -> None:
        """Nothing of the term runs any more; if it had begun, that is said in the row."""
        held, served = self._held, self.term
        self._held = self.term = self._began_s = None
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
        if clear:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._resign, number)
        log.info("%s is not the manager any more, term %d is over", self._config.server, number)

    async def _wait_for_predecessor(self, stand: Stand, taken: Taken, taken_s: float) -> None:
        """Returns when nobody acts in an earlier term any more."""
        row = stand.row
        while not may_begin(stand, taken, taken_s, row.stopped, monotonic_s(), self._term_s):
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
            await term.begin()
        except (SQLAlchemyError, GodwitError) as error:
            log.error("cannot begin term %d: %s", term.number, error)
            term.leave()
            return
        self.term = term
        self._began_s = monotonic_s()
        log.info("%s is the manager, term %d", self._config.server, term.number)
        loops = (tick_loop, reap_loop, scan_loop, volume_scan_loop, requeue_loop, migrate_loop, forget_replies_loop)
        for loop in loops:
            nursery.start_soon(_keep_going, loop, term)

    async def _extend_loop(self, term: Term) -> None:
        while True:
            await trio.sleep(self._term_s * EXTEND_PART)
            started = monotonic_s()
            try:
                await term.store.write(lambda tx: extend_office(tx.connection, tx.term))
            except NotManager as error:
                log.warning("the office was not extended: %s", error)
            else:
                term.extended(started)

    def _resign(self, number: int) -> None:
        try:
            with write_transaction(self._writer) as connection:
                resign_office(connection, number)
        except SQLAlchemyError as error:
            log.info("the office was not given back, it runs out: %s", error)


def _draw() -> float:
    return random.random()  # noqa: S311


async def _leave(term: Term, scope: trio.CancelScope) -> None:
    """Ends the term when it was asked to."""
    await term.leaving.wait()
    log.info("stepping down, term %d", term.number)
    term.end()
    scope.cancel()


async def _guard(term: Term, scope: trio.CancelScope) -> None:
    """Ends the term when its time is over, whatever else hangs."""
    while term.in_office:
        await trio.sleep_until(term.deadline)
    log.error("the office could not be extended in time")
    scope.cancel()


async def _keep_going(loop: Callable[[Term], Awaitable[None]], term: Term) -> None:
    """Runs background work again when it fails: only the office's rules end a term."""
    while True:
        try:
            await loop(term)
        except NotManager as error:
            log.warning("%s: %s", loop.__name__, error)
        except Exception:
            log.exception("unexpected error in %s", loop.__name__)
        await trio.sleep(FAILED_LOOP_PAUSE_S)


async def _migrate(engine: Engine) -> None:
    """Waits a while for a database that is starting; raises `Unavailable`."""
    deadline = monotonic_s() + DATABASE_WAIT_S
    while True:
        try:
            await trio.to_thread.run_sync(retrying, partial(migrate, engine))
            return
        except SQLAlchemyError as error:
            url = engine.url.render_as_string(hide_password=True)
            if monotonic_s() > deadline or engine.dialect.name == "sqlite":
                raise Unavailable(f"cannot open the catalog {url}: {error}") from error
            log.warning("cannot open the catalog %s yet: %s", url, error)
        await trio.sleep(FAILED_LOOP_PAUSE_S)


async def _cancel_after(until: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await until()
    scope.cancel()


async def run_manager(config: ServerConfig, until: Callable[[], Awaitable[None]]) -> None:
    """Runs this server's candidate until *until* returns. Raises `Unavailable` if it cannot start."""
    writer, reader = make_engines(config.manager.database)
    candidate = Candidate(config, writer, reader)
    decoder = msgspec.msgpack.Decoder(ManagerRequest)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, until, nursery.cancel_scope)
            await _migrate(writer)
            serve = partial(listen, config.manager.listen, decoder, lambda _peer: Connection(candidate, config.cluster))
            await nursery.start(serve)
            await candidate.run()
    except* GodwitError as group:
        raise own_error(group) or group from None
    finally:
        writer.dispose()
        reader.dispose()
