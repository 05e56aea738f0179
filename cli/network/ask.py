"""Asking the manager of the network that a command is about."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from cli.network.target import Target
from cluster.errors import Unavailable
from cluster.messages import Request
from cluster.rpc.conversation import Asker, converse

R = TypeVar("R")
T = TypeVar("T")


def talk(target: Target, timeout_s: float, work: Callable[[Asker], Awaitable[T]], *, each: bool = False) -> T:
    """As `converse`; if nobody answers, the error says what to try."""
    try:
        return converse(target.managers, target.credentials, timeout_s, work, each=each)
    except Unavailable as error:
        raise Unavailable(f"{error}; {target.advice}", error.errno) from error


def ask(target: Target, timeout_s: float, request: Request[R]) -> R:
    """The manager's reply to one request."""

    async def once(asker: Asker) -> R:
        return await asker(request)

    return talk(target, timeout_s, once)


def talk_on(target: Target, timeout_s: float, work: Callable[[Asker], Awaitable[T]]) -> T:
    """As `talk`, for as long as *work* likes: the time is that of each question."""
    try:
        return talk(target, timeout_s, work, each=True)  # a watch lasts hours: no limit for all of it
    except BaseExceptionGroup as group:
        # What is shown meanwhile cannot be written, since nobody reads it any more: trio wraps what ends a nursery.
        unwritten, others = group.split(OSError)
        if unwritten is None or others is not None:
            raise
        error: BaseException = unwritten
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
