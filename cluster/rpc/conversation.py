"""A conversation with the manager: a session for as long as it lasts, one deadline for all of it or one for each question.

Knows nothing of labs.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from cluster.errors import own_error
from cluster.messages import Request
from cluster.rpc.session import ManagerSession
from cluster.trust.credentials import Credentials

R = TypeVar("R")
T = TypeVar("T")


class Asker:
    """Asks the manager; every request must be answered before the command's deadline, or (*each*) within the time itself."""

    def __init__(self, session: ManagerSession, timeout_s: float, *, each: bool = False) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._each = each
        self._deadline_s = trio.current_time() + timeout_s

    async def __call__(self, request: Request[R]) -> R:
        left_s = self._timeout_s if self._each else max(0.0, self._deadline_s - trio.current_time())
        return await self._session.call(request, timeout_s=left_s)


def converse(
    managers: Sequence[str],
    credentials: Credentials,
    timeout_s: float,
    work: Callable[[Asker], Awaitable[T]],
    *,
    each: bool = False,
) -> T:
    """What *work* returns; raises what the manager answers, or `Unavailable` after *timeout_s* (of *each* request)."""

    async def conversation() -> T:
        session = ManagerSession(managers=managers, credentials=credentials)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            result = await work(Asker(session, timeout_s, each=each))
            nursery.cancel_scope.cancel()
        return result

    try:
        return trio.run(conversation)
    except BaseExceptionGroup as group:
        error = own_error(group)
        if error is None:
            raise
        raise error from group
