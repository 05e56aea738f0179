"""One command's conversation with the manager: a session for as long as the command runs, one deadline for all of it."""

import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from cli.target import Target
from cluster.errors import Unavailable
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


def talk(target: Target, timeout_s: float, work: Callable[[Asker], Awaitable[T]]) -> T:
    """What *work* returns; raises what the manager answers, or `Unavailable` that says whom to look after."""

    async def conversation() -> T:
        async with trio.open_nursery(strict_exception_groups=False) as nursery:
            session = ManagerSession(managers=target.managers, cluster=target.cluster, server=_caller(), role="cli")
            nursery.start_soon(session.run)
            with trio.fail_after(timeout_s + 1):
                result = await work(Asker(session, trio.current_time() + timeout_s))
            nursery.cancel_scope.cancel()
        return result

    try:
        return trio.run(conversation)
    except trio.TooSlowError:
        raise Unavailable(f"the manager did not answer within {timeout_s:g} s; {target.advice}") from None
    except Unavailable as error:
        raise Unavailable(f"{error}; {target.advice}", error.errno) from error


def ask(target: Target, timeout_s: float, request: Request[R]) -> R:
    """The manager's reply to one request."""

    async def once(asker: Asker) -> R:
        return await asker(request)

    return talk(target, timeout_s, once)


def _caller() -> str:
    """A name of its own for each command: sessions of one name replace one another."""
    return f"cli-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
