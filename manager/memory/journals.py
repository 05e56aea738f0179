"""How far the journals of mounts have been applied, as the catalog has it: saves a question for each message of records.

Changed in the event loop only, after the commit. Messages of one journal are applied one after the other: `lock`.
"""

from dataclasses import dataclass, field

import trio


@dataclass(eq=False)
class Journal:
    """One mount's journal."""

    session: int  # of the mount, by number
    server: str = ""  # of the mount; empty: the catalog has no row of it
    last: int = 0  # sequence of the last record that was applied or passed over
    final: bool = False  # nothing follows
    is_read: bool = False  # what is above is from the catalog
    lock: trio.Lock = field(default_factory=trio.Lock)  # held while records are applied


class Journals:
    """Those that have been of interest in this term."""

    def __init__(self) -> None:
        self._known: dict[int, Journal] = {}

    def of(self, session: int) -> Journal:
        """The journal of a mount's session."""
        return self._known.setdefault(session, Journal(session))

    def forget(self, session: int) -> None:
        """Its mount is gone; it is read again if anybody asks."""
        journal = self._known.get(session)
        # Who waits for the lock goes on with this very object.
        if journal is not None and not journal.lock.statistics().locked:
            del self._known[session]
