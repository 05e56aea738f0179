"""The manager's process: a candidate that listens always, and answers while it holds the office."""

import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from cluster.clock import monotonic_s
from cluster.config import ServerConfig
from cluster.errors import GodwitError, NotManager, Unavailable, own_error
from cluster.messages import ManagerRequest
from cluster.rpc import listen
from manager.housekeeping import forget_replies_loop, reap_loop, scan_loop, tick_loop
from manager.migrate import migrate
from manager.migrating import migrate_loop
from manager.office import (
    EXTEND_PART,
    SAFE_PART,
    WATCH_PART,
    OfficeRow,
    Watch,
    extend_office,
    read_office,
    take_office,
    vacate_office,
)
from manager.service import Connection
from manager.store import Store, make_engines, retrying, write_transaction
from manager.term import Term
from manager.volume_scans import volume_scan_loop

log = logging.getLogger(__name__)

DATABASE_WAIT_S = 60.0
FAILED_LOOP_PAUSE_S = 1.0


class Candidate:
    """This server's candidate for the office."""

    def __init__(self, config: ServerConfig, writer: Engine, reader: Engine) -> None:
        self.term: Term | None = None
        self._config = config
        self._writer = writer
        self._reader = reader
        self._seen: OfficeRow | None = None

    def describe_manager(self) -> str:
        """Who holds the office, as far as this candidate knows."""
        if self._seen is None or self._seen.vacant:
            return f"{self._config.server} is not the manager; nobody is at the moment"
        return f"{self._config.server} is not the manager; the last one it saw is {self._seen.server} at {self._seen.address}"

    async def run(self) -> None:
        """Watches the office, and holds it when it gets it, for ever."""
        watch = Watch(self._config.manager.term_s)
        while True:
            seen = await self._look()
            if seen is not None and watch.observe(seen, monotonic_s()):
                started = monotonic_s()
                if await self._take(seen):
                    await self._hold(seen.term + 1, started)
                    watch = Watch(self._config.manager.term_s)
            await trio.sleep(self._config.manager.term_s * WATCH_PART * random.uniform(0.8, 1.2))  # noqa: S311

    async def _look(self) -> OfficeRow | None:
        def ask() -> OfficeRow:
            with self._reader.connect() as connection:
                return read_office(connection)

        try:
            self._seen = await trio.to_thread.run_sync(ask)
        except SQLAlchemyError as error:
            log.warning("cannot read the catalog: %s", error)
            return None
        return self._seen

    async def _take(self, seen: OfficeRow) -> bool:
        def take() -> bool:
            with write_transaction(self._writer) as connection:
                return take_office(connection, seen, self._config.server, self._config.manager.listen)

        try:
            return await trio.to_thread.run_sync(retrying, take)
        except SQLAlchemyError as error:
            # Perhaps it was taken all the same: then nobody acts in that term, and the next one is taken when it runs out.
            log.warning("cannot tell whether the office was taken: %s", error)
            return False

    async def _hold(self, number: int, started: float) -> None:
        log.info("%s is the manager, term %d", self._config.server, number)
        term: Term | None = None
        try:
            async with trio.open_nursery() as nursery:
                store = Store(self._writer, self._reader, number, on_fenced=nursery.cancel_scope.cancel)
                term = Term(self._config, store, started + SAFE_PART * self._config.manager.term_s)
                nursery.start_soon(store.run)
                nursery.start_soon(_guard, term, nursery.cancel_scope)
                await self._serve(term, nursery)
        finally:
            self.term = None
            if term is not None and term.end():
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(self._vacate, number)
            log.info("%s is not the manager any more, term %d is over", self._config.server, number)

    async def _serve(self, term: Term, nursery: trio.Nursery) -> None:
        """Begins to answer; the work of the term goes on in *nursery*."""
        try:
            await term.begin()
        except (SQLAlchemyError, GodwitError) as error:
            log.error("cannot begin term %d: %s", term.number, error)
            nursery.cancel_scope.cancel()
            return
        self.term = term
        for loop in (self._extend_loop, tick_loop, reap_loop, scan_loop, volume_scan_loop, migrate_loop, forget_replies_loop):
            nursery.start_soon(_keep_going, loop, term)

    async def _extend_loop(self, term: Term) -> None:
        while True:
            await trio.sleep(self._config.manager.term_s * EXTEND_PART)
            started = monotonic_s()
            await term.store.write(lambda tx: extend_office(tx.connection, tx.term))
            term.extended(started)

    def _vacate(self, number: int) -> None:
        try:
            with write_transaction(self._writer) as connection:
                vacate_office(connection, number)
        except SQLAlchemyError as error:
            log.info("the office was not given back, it runs out: %s", error)


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
