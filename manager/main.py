"""The manager's process: a candidate that listens always, and answers while it holds the office."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from cluster.config import ServerConfig, credentials_of
from cluster.decoding import Decode, from_msgpack
from cluster.errors import Refused, own_error
from cluster.exporter import serve_metrics
from cluster.messages import MANAGER_UNION
from cluster.rpc.frames import HEAD_MAX_BYTES, Limits
from cluster.rpc.serving import listen
from cluster.service import SERVICE
from cluster.tending import tended
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from manager.candidate import Candidate
from manager.catalog.engines import make_engines
from manager.catalog.first_start import open_catalog
from manager.page.listener import serve_page
from manager.requests.connection import Connection

WITHOUT_BODIES = Limits(HEAD_MAX_BYTES, 0)  # content never passes through the manager


def check_trust(folder: TrustFolder) -> None:
    """Raises `Refused` for a server that lacks what the office needs, before it could be elected."""
    folder.read_authority()
    folder.read_master()


async def _cancel_after(until: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await until()
    scope.cancel()


async def run_manager(config: ServerConfig, until: Callable[[], Awaitable[None]]) -> None:
    """Runs this server's candidate until *until* returns. Raises `GodwitError` if it cannot start, or must stop."""
    if not config.is_candidate:
        raise Refused(
            f"{config.server} is no candidate: its configuration has no manager.listen (godwit servers add --candidate)"
        )
    check_trust(TrustFolder(config.trust))
    credentials = credentials_of(config, Role.MANAGER)
    writer, reader = make_engines(config.manager.database)
    candidate = Candidate(config, credentials, writer, reader)
    decode: Decode[Any] = from_msgpack(MANAGER_UNION)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, until, nursery.cancel_scope)
            connection = partial(Connection, candidate, config.cluster)
            serve = partial(listen, config.manager.listen, decode, connection, credentials, limits=WITHOUT_BODIES)
            # Before the catalog is there: any candidate answers pings, and says why nobody is in office.
            await nursery.start(serve)
            SERVICE.ready()
            SERVICE.status("waits for the catalog's database")
            nursery.start_soon(tended, partial(serve_metrics, config, credentials, candidate.samples))
            nursery.start_soon(tended, partial(serve_page, config, credentials, candidate))
            # It may wait for a database that starts, or whose disk is full, for as long as that takes.
            await open_catalog(writer, candidate.room)
            await candidate.run()
    except BaseExceptionGroup as group:
        raise own_error(group) or group from None
    finally:
        # Before the engines go: the catalog's log is synced for it.
        candidate.remember()
        writer.dispose()
        reader.dispose()
