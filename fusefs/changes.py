"""Changes that the kernel asks for: made by the manager, noted in what is cached here, and known to whoever must give way."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import trio

from cluster.messages import Node, Operation
from cluster.session import ManagerSession
from fusefs.caching import Allowance, Caching, Seen
from fusefs.recalls import Recalls


class Changed(NamedTuple):
    """What became of one operation."""

    node: Node | None
    tokens: list[bytes]
    allowed: Allowance

    @property
    def made(self) -> Node:
        """The node of an operation that makes or changes an inode."""
        assert self.node is not None
        return self.node


class Changes:
    """Applies operations one by one."""

    def __init__(self, session: ManagerSession, caching: Caching, recalls: Recalls, timeout_s: float) -> None:
        self._session = session
        self._caching = caching
        self._recalls = recalls
        self._timeout_s = timeout_s

    def under_way(self, *locked: int) -> AbstractContextManager[None]:
        """While inside, the kernel holds the locks of these directories: `Recalls.changing`."""
        return self._recalls.changing(*locked)

    async def outlive(self, until_s: float) -> None:
        """Has the kernel forget names, from within a change: `Recalls.outlive`."""
        await self._recalls.outlive(until_s)

    async def apply(self, operation: Operation, *locked: int) -> Changed:
        """Applies *operation*; the kernel holds the locks of *locked* meanwhile. Raises `GodwitError`."""
        asked_s = trio.current_time()
        with self._recalls.changing(*locked):
            applied = await self._session.apply_for_tokens([operation], timeout_s=self._timeout_s)
        allowed = self._caching.changed(applied.touched, applied.grant, asked_s)
        (node,) = applied.nodes
        if node is not None:
            self._caching.keep_node(node, allowed)
        return Changed(node, applied.tokens, allowed)

    def seen(self, changed: Changed, parent: int, name: bytes) -> Seen:
        """What the kernel is told of something new in *parent*."""
        allowed = changed.allowed
        return self._caching.seen(changed.made, allowed.until_s(changed.made.ino), parent, name, allowed.until_s(parent))
