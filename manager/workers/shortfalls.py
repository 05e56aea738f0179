"""Has files below their policy looked at again when the reason may have gone.

That is when room has come, when a volume counts again, and now and then; a page at a time, and only while there are any.
"""

from functools import partial

import trio

from cluster.clock import monotonic_s
from manager.changes.shortfalls import reexamine, try_again
from manager.rules.placement import Place
from manager.term import Term

PAUSE_S = 0.005  # between pages, so that requests go first
LOOK_S = 2.0  # between looks at the volumes
AGAIN_S = 600.0  # what nothing speaks for is looked at again all the same
GROWN_SHARE = 100  # more room by this part of a volume is worth a look


class Room:
    """Notices when copies may have found a place: a volume takes some that did not, or has more room than it had."""

    def __init__(self, now: float) -> None:
        self._least: dict[int, int] = {}  # by volume that takes copies: least free bytes since room came last
        self._ended_s = now

    def has_come(self, places: dict[int, Place], now: float) -> bool:
        """Whether that is so since it was said last; also after a long time."""
        taking = {volume: place.free_bytes for volume, place in places.items() if place.up and place.counts and place.accepts}
        come = any(
            volume not in self._least or free > self._least[volume] + places[volume].total_bytes // GROWN_SHARE
            for volume, free in taking.items()
        )
        come = come or now - self._ended_s > AGAIN_S
        if come:
            self._ended_s = now
            self._least = taking
        else:
            self._least = {volume: min(free, self._least[volume]) for volume, free in taking.items()}
        return come


async def shortfall_loop(term: Term) -> None:
    """Looks at files below their policy again when there is reason to."""
    room = Room(monotonic_s())
    while True:
        if room.has_come(dict(term.state.members.places()), monotonic_s()):
            for step in (reexamine, try_again):
                after = 0
                while after := await term.store.write(partial(step, state=term.state, after=after)):
                    await trio.sleep(PAUSE_S)
        await trio.sleep(LOOK_S)
