"""What candidates ask each other over the network: whether the holder is there, and whether others hear it.

Nothing here decides anything: see `manager.rules.election`.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from types import TracebackType

import trio

from cluster.catalog_point import CatalogPoint
from cluster.clock import monotonic_s
from cluster.errors import GodwitError
from cluster.messages import AskCatalog, AskHearing, Ping, Pong
from cluster.rpc.connection import Channel, ask_once, connect
from cluster.rpc.wire import A_MANAGER
from cluster.trust.credentials import Credentials

log = logging.getLogger(__name__)


class Line:
    """A connection that is kept from one ping to the next, to whoever is the holder then. *nursery* runs its receiver."""

    def __init__(self, credentials: Credentials, timeout_s: float, nursery: trio.Nursery) -> None:
        self._credentials = credentials  # of this candidate
        self._ping = Ping(credentials.identity.cluster)  # the same each time
        self._timeout_s = timeout_s  # of connecting and answering together
        self._nursery = nursery  # runs the receiver, which may outlive one ping
        self._channel: Channel | None = None  # None before the first ping and after a failure

    async def ping(self, address: str) -> Pong | None:
        """What is answered at *address*; None if nothing came in time."""
        deadline = monotonic_s() + self._timeout_s
        try:
            if self._channel is None or self._channel.peer != address or self._channel.broken.is_set() or self._channel.is_stale:
                self.close()
                self._channel = await connect(address, self._nursery, self._credentials, A_MANAGER, timeout_s=self._timeout_s)
            return await self._channel.call(self._ping, timeout_s=max(0.0, deadline - monotonic_s()))
        except (GodwitError, ValueError) as error:
            log.debug("no answer from %s: %s", address, error)
            self.close()
            return None

    def close(self) -> None:
        """Hangs up."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


async def ask_hearing(
    addresses: Collection[str],
    request: AskHearing,
    credentials: Credentials,
    timeout_s: float,
    is_enough: Callable[[Mapping[str, bool]], bool],
) -> dict[str, bool]:
    """Who among *addresses*, by server, says that it hears a manager or not; in time, or once it is enough."""
    answers: dict[str, bool] = {}

    async def ask(address: str, nursery: trio.Nursery) -> None:
        try:
            hearing = await ask_once(address, request, credentials, timeout_s=timeout_s)
        except (GodwitError, ValueError) as error:
            log.debug("no answer from %s: %s", address, error)
            return
        # By server, not by address: one that has two is counted once.
        answers[hearing.server] = hearing.hears
        if is_enough(answers):
            nursery.cancel_scope.cancel()

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(ask, address, nursery)
    return answers


async def ask_catalog(
    addresses: Collection[str], request: AskCatalog, credentials: Credentials, timeout_s: float
) -> dict[str, CatalogPoint]:
    """The catalog points that the candidates at *addresses* have seen, by server; only of those that answer in time."""
    points: dict[str, CatalogPoint] = {}

    async def ask(address: str) -> None:
        try:
            answer = await ask_once(address, request, credentials, timeout_s=timeout_s)
        except (GodwitError, ValueError) as error:
            log.debug("no answer from %s: %s", address, error)
            return
        if answer.point is not None:
            points[answer.server] = answer.point

    with trio.move_on_after(timeout_s):
        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(ask, address)
    return points
