"""Runs work that lasts as long as the process: an error in one turn ends that turn only."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio

from cluster.errors import Fenced
from cluster.faults import faults

log = logging.getLogger(__name__)

PAUSE_S = 1.0


async def tended(
    work: Callable[[], Awaitable[object]],
    *,
    again: bool = True,
    ends: tuple[type[Exception], ...] = (Fenced,),
    pause_s: float = PAUSE_S,
) -> None:
    """Runs *work*; when it fails for a reason that nobody had thought of, that is logged and counted, and it begins anew after
    *pause_s*, or with `again=False` is given up.

    *ends* are reasons to end the process as well, such as `Fenced`: somebody else does its work.
    """
    while True:
        try:
            await work()
            return
        except ends:
            raise
        except Exception as error:
            faults.unexpected(log, f"in {name_of(work)}", error)
        if not again:
            return
        await trio.sleep(pause_s)


class Tasks(Protocol):
    """What starts tasks: a nursery, or `TendedTasks`."""

    def start_soon(self, work: Callable[..., Awaitable[object]], /, *arguments: object) -> None:
        """Starts a task."""


class TendedTasks:
    """Starts tasks in *nursery* whose failures end nothing but themselves; see `tended`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, work: Callable[..., Awaitable[object]], /, *arguments: object) -> None:
        self._nursery.start_soon(partial(tended, partial(work, *arguments), again=False))


def name_of(work: Callable[..., object]) -> str:
    """What to call it in a log."""
    return str(getattr(work, "__qualname__", None) or getattr(getattr(work, "func", None), "__qualname__", repr(work)))
