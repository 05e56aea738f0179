"""Listens for people and programs that are no processes of the network: where they may be had, and at which pace.

What the network's own processes ask of each other is taken by `cluster.rpc.serving`.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from cluster.errors import error_text
from cluster.faults import faults
from cluster.rpc.wire import parse_address

log = logging.getLogger(__name__)

PACE_S = 0.02  # between two connections at an address
RETRY_S = 10.0  # until an address that could not be had is tried again


async def listeners_at(address: str, what: str) -> list[trio.SocketListener]:
    """Those of `host:port`, for *what* is to be had there, a plural. One that cannot be had is told, and tried again for ever."""
    host, port = parse_address(address)
    while True:
        try:
            return await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            why = f"{what} cannot be had at {address}, and it is tried again: {error_text(error)}"
            faults.note(log, f"no address for {what}", why, level=logging.WARNING)
        await trio.sleep(RETRY_S)


async def take_connections(
    listener: trio.SocketListener, serve: Callable[[trio.SocketStream], Awaitable[None]], nursery: trio.Nursery
) -> None:
    """Takes connections until cancelled, and starts *serve*, which raises nothing, with each in *nursery*."""
    async with listener:
        while True:
            try:
                nursery.start_soon(serve, await listener.accept())
            except OSError as error:  # no descriptor is left, for example
                faults.note(log, "no connection taken", f"cannot take a connection: {error_text(error)}")
            # However many come: the event loop has other things to do. They wait in the kernel.
            await trio.sleep(PACE_S)
