"""Inode numbers in advance, so that a create needs one request."""

import trio

from cluster.messages import TakeInodes
from cluster.rpc.session import ManagerSession

RANGE = 4096  # one request for as many creates


class InodeNumbers:
    """Hands out numbers from ranges that the manager gave to this session."""

    def __init__(self, session: ManagerSession, timeout_s: float) -> None:
        self._session = session
        self._timeout_s = timeout_s
        self._next = 0  # the number that is given out next
        self._end = 0  # where the range ends
        self._lock = trio.Lock()

    async def take(self) -> int:
        """A number that nobody has or had; raises `Unavailable`."""
        while self._next >= self._end:
            async with self._lock:
                if self._next < self._end:
                    continue  # somebody else has fetched a range while the lock was waited for
                reply = await self._session.call(TakeInodes(RANGE), timeout_s=self._timeout_s)
                self._next, self._end = reply.first, reply.first + reply.count
        number = self._next
        self._next += 1
        return number

    def take_known(self) -> int | None:
        """As `take`; None if the manager has to be asked."""
        if self._next >= self._end:
            return None
        self._next += 1
        return self._next - 1

    def put_back(self, number: int) -> None:
        """Nothing came of what `take_known` has returned, in the same step."""
        assert number == self._next - 1
        self._next = number
