"""Programs that wait for an answer, and may be told to end meanwhile: what has not begun for them by then does not begin any
more.

A task says with `work_for` for whom it works, and those that it starts inherit that: it starts none that outlive the request.
What was sent and may change something is carried through all the same (`cluster.rpc.session`).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import trio

from cluster.errors import Refused


class Waiter:
    """One request of a program. `ended`: the program is told to end, and wants no answer any more. `answered`: it has been told
    that it was interrupted, whatever becomes of the request. `changes`: what was changed for it, see
    `fusefs.caching.changes`."""

    __slots__ = ("answered", "changes", "ended", "scopes")

    def __init__(self) -> None:
        self.ended = False
        self.answered = False
        self.changes: list[object] = []
        self.scopes: list[trio.CancelScope] = []

    def was_interrupted(self) -> None:
        """The kernel has been given EINTR for it."""
        self.answered = True

    def end(self) -> None:
        """Ends what it waits for, as far as that has not begun."""
        self.ended = True
        for scope in self.scopes:
            scope.cancel()


_current: ContextVar[Waiter | None] = ContextVar("waiter", default=None)


def current_waiter() -> Waiter | None:
    """For whom this task works at the moment, None for itself."""
    return _current.get()


def work_for(waiter: Waiter | None) -> None:
    """From now on this task works for *waiter*."""
    _current.set(waiter)


def check_wanted() -> None:
    """Raises `Refused` with EINTR if nobody wants the answer any more: to be asked before something is begun."""
    waiter = _current.get()
    if waiter is not None and waiter.ended:
        raise Refused(os.strerror(errno.EINTR), errno.EINTR)


@contextmanager
def while_wanted() -> Iterator[None]:
    """Cancels what is waited for inside when nobody wants the answer any more; who goes on has to `check_wanted`."""
    waiter = _current.get()
    if waiter is None:
        yield
        return
    with trio.CancelScope() as scope:
        waiter.scopes.append(scope)
        try:
            yield
        finally:
            waiter.scopes.remove(scope)
