"""Lease tokens for copies: the right of this agent to read an inode at its sources, good for an access time."""

import msgspec

from cluster.messages import AskLeases, PullObject
from cluster.rpc.session import ManagerSession

MANAGER_TIMEOUT_S = 15.0


class ReadTokens:
    """Asks the manager for lease tokens to read."""

    def __init__(self, session: ManagerSession) -> None:
        self._session = session

    async def renewed(self, request: PullObject) -> PullObject:
        """The request with a new token. Raises `GodwitError`."""
        # One inode, one token: another number is a defect of the manager, and ends this attempt by ValueError.
        (token,) = (await self._session.call(AskLeases([request.ino]), timeout_s=MANAGER_TIMEOUT_S)).tokens
        return msgspec.structs.replace(request, token=token)
