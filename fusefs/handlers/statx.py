"""`statx` with the time of birth, for which pyfuse3 has no handler.

The kernel sends it only when a program asks for that time, and keeps the answer with the attributes: the time never changes.
"""

from fusefs.kernel import replies
from fusefs.kernel.requests import Handler, Opcode, Raw
from fusefs.names.lookups import Lookups


class Statx:
    """The handler."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups

    def handlers(self) -> dict[Opcode, Handler]:
        """By opcode."""
        return {Opcode.STATX: self.statx}

    async def statx(self, request: Raw) -> bytes:
        return replies.statx(await self._lookups.getattr(request.ino))
