"""Moves homes away from damaged objects as soon as nobody can be writing the files."""

from functools import partial

import trio

from manager.changes.damage import DAMAGED_HOMES, align_damaged
from manager.memory.state import DAMAGE
from manager.term import Term

AGAIN_S = 1.0  # between rounds: whoever is writing has then perhaps closed


async def damage_loop(term: Term) -> None:
    """Moves homes away from damaged objects as soon as nobody can be writing the files."""
    state = term.state
    # The memory of the manager before is lost; the catalog knows the faults.
    for ino in await term.store.read_slowly(lambda connection: list(connection.execute(DAMAGED_HOMES).scalars())):
        state.damaged_homes[ino] = None
    while True:
        with state.bells.listening(DAMAGE) as bell:
            if not state.damaged_homes:
                await bell.wait()
        for ino in list(state.damaged_homes):
            # Before the wait: if it is still to come, or is found anew meanwhile, it is put back.
            del state.damaged_homes[ino]
            await term.store.write(partial(align_damaged, state=state, ino=ino))
        await trio.sleep(AGAIN_S)
