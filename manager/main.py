"""The manager's process: a candidate that listens always, and answers while it holds the office."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from cluster.config import ServerConfig
from cluster.decoding import Decode, from_msgpack
from cluster.errors import GodwitError, own_error
from cluster.messages import MANAGER_UNION
from cluster.rpc.frames import HEAD_MAX_BYTES, Limits
from cluster.rpc.serving import listen
from manager.candidate import Candidate
from manager.catalog.engines import make_engines
from manager.catalog.first_start import open_catalog
from manager.requests.connection import Connection

WITHOUT_BODIES = Limits(HEAD_MAX_BYTES, 0)  # content never passes through the manager


async def _cancel_after(until: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await until()
    scope.cancel()


async def run_manager(config: ServerConfig, until: Callable[[], Awaitable[None]]) -> None:
    """Runs this server's candidate until *until* returns. Raises `GodwitError` if it cannot start, or must stop."""
    writer, reader = make_engines(config.manager.database)
    candidate = Candidate(config, writer, reader)
    decode: Decode[Any] = from_msgpack(MANAGER_UNION)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, until, nursery.cancel_scope)
            connection = partial(Connection, candidate, config.cluster)
            serve = partial(listen, config.manager.listen, decode, lambda _peer: connection(), limits=WITHOUT_BODIES)
            # Before the catalog is there: any candidate answers pings, and says why nobody is in office.
            await nursery.start(serve)
            # It may wait for a database that starts, or whose disk is full, for as long as that takes.
            await open_catalog(writer, candidate.room)
            await candidate.run()
    except* GodwitError as group:
        raise own_error(group) or group from None
    finally:
        # Before the engines go: the catalog's log is synced for it.
        candidate.remember()
        writer.dispose()
        reader.dispose()
