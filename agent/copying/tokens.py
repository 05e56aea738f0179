"""Lease tokens for copies: the right of this agent to read an inode at its sources, good for an access time."""

from typing import TypeVar

import msgspec

from cluster.messages import AskLeases, PullObject, ReadObject
from cluster.rpc.session import ManagerSession

MANAGER_TIMEOUT_S = 15.0

R = TypeVar("R", PullObject, ReadObject)


class ReadTokens:
    """Asks the manager for lease tokens to read."""

    def __init__(self, session: ManagerSession) -> None:
        self._session = session

    async def renewed(self, request: R) -> R:
        """The request with a new token for the agent that it goes to. Raises `GodwitError`."""
        # One inode, one token: another number is a defect of the manager, and ends this attempt by ValueError.
        asked = AskLeases([request.ino], request.volume)
        (token,) = (await self._session.call(asked, timeout_s=MANAGER_TIMEOUT_S)).tokens
        return msgspec.structs.replace(request, token=token)
