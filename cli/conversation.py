"""A conversation with the manager: a session for as long as it lasts, one deadline for all of it. Knows nothing of labs."""

import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from cluster.errors import own_error
from cluster.messages import Request
from cluster.session import ManagerSession

R = TypeVar("R")
T = TypeVar("T")


class Asker:
    """Asks the manager; every request must be answered before the command's deadline."""

    def __init__(self, session: ManagerSession, deadline_s: float) -> None:
        self._session = session
        self._deadline_s = deadline_s

    async def __call__(self, request: Request[R]) -> R:
        return await self._session.call(request, timeout_s=max(0.0, self._deadline_s - trio.current_time()))


def converse(managers: Sequence[str], cluster: str, timeout_s: float, work: Callable[[Asker], Awaitable[T]]) -> T:
    """What *work* returns; raises what the manager answers, or `Unavailable` after *timeout_s*."""

    async def conversation() -> T:
        # A name of its own for each command: sessions of one name may replace one another.
        session = ManagerSession(managers=managers, cluster=cluster, server=f"{socket.gethostname()}-{os.getpid()}", role="cli")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            result = await work(Asker(session, trio.current_time() + timeout_s))
            nursery.cancel_scope.cancel()
        return result

    try:
        return trio.run(conversation)
    except BaseExceptionGroup as group:
        error = own_error(group)
        if error is None:
            raise
        raise error from group
