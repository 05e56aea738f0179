"""`statx` with the time of birth, for which pyfuse3 has no handler. The kernel asks like this when it is to tell that time, and
keeps it with the attributes; it never changes.
"""

from fusefs.kernel import replies as answers
from fusefs.kernel.requests import Handler, Opcode, Raw
from fusefs.namespace import Namespace


class Statx:
    """The handler."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    def handlers(self) -> dict[Opcode, Handler]:
        """By opcode."""
        return {Opcode.STATX: self.statx}

    async def statx(self, request: Raw) -> bytes:
        return answers.statx(await self._namespace.getattr(request.ino))
