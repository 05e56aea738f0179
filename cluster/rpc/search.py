"""Finding the candidate that is in office, among those that are known and those that they name.

All are asked at once and each again and again, independently, so that one that does not answer delays nobody. Nothing is
introduced here: `Hello` goes only to the one that was found, since it makes earlier connections of a session void.
"""

import logging
from collections.abc import Callable, Iterable

import trio

from cluster.errors import CatalogFault, GodwitError
from cluster.messages import Ping, Pong
from cluster.rpc.connection import Channel, connect
from cluster.rpc.wire import A_MANAGER
from cluster.trust.credentials import Credentials

log = logging.getLogger(__name__)

ANSWER_S = 1.0  # for connecting, and for each ping
AGAIN_S = 0.1  # between the pings of one candidate


class Search:
    """One search; `run` returns when somebody says that it is in office. *refused* is told why others are not it,
    *troubled* what the disk of the catalog has, where that is the reason."""

    def __init__(
        self,
        credentials: Credentials,
        channels: trio.Nursery,
        refused: Callable[[str], None],
        troubled: Callable[[CatalogFault], None] = lambda _fault: None,
    ) -> None:
        self._ping = Ping(credentials.identity.cluster)
        self._credentials = credentials
        self._channels = channels
        self._refused = refused
        self._troubled = troubled
        self._asked: set[str] = set()
        self._found: tuple[str, Channel] | None = None

    async def run(self, addresses: Iterable[str]) -> tuple[str, Channel]:
        """The address of the manager, and a connection to it whose receiver runs in the nursery that was given."""
        async with trio.open_nursery() as nursery:
            for address in addresses:
                self._add(address, nursery)
        assert self._found is not None, "it goes on until somebody is found"
        return self._found

    def _add(self, address: str, nursery: trio.Nursery) -> None:
        if address not in self._asked:
            self._asked.add(address)
            nursery.start_soon(self._keep_asking, address, nursery)

    async def _keep_asking(self, address: str, nursery: trio.Nursery) -> None:
        while True:
            try:
                await self._ask(address, nursery)
            except (GodwitError, ValueError) as error:
                self._refused(str(error))
            await trio.sleep(AGAIN_S)

    async def _ask(self, address: str, nursery: trio.Nursery) -> None:
        """Pings over one connection until it breaks, or the one who answers is the manager."""
        channel = await connect(address, self._channels, self._credentials, A_MANAGER, timeout_s=ANSWER_S)
        try:
            while True:
                pong: Pong = await channel.call(self._ping, timeout_s=ANSWER_S)
                if pong.in_office:
                    if self._found is None:
                        self._found = (address, channel)
                        nursery.cancel_scope.cancel()
                    return
                self._refused(pong.why or f"{pong.server} is not the manager")
                if pong.trouble:
                    self._troubled(CatalogFault(pong.why, pong.trouble))
                if pong.address:
                    self._add(pong.address, nursery)
                await trio.sleep(AGAIN_S)
        finally:
            if self._found is None or self._found[1] is not channel:
                channel.close()
