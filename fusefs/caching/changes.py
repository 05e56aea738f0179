"""Changes that the kernel asks for: made by the manager, noted in what is cached here, and known to whoever must give way."""

import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import trio

from cluster.errors import GodwitError, Refused
from cluster.messages import Create, Node, Operation
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Allowance, Caching, Contents, Seen
from fusefs.caching.recalls import Recalls

Names: TypeAlias = Mapping[tuple[int, bytes], int | None]
"""What becomes of names, by directory and name: an inode, 0 for none, None for what is not known."""

_NO_NAMES: Names = MappingProxyType({})


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

    async def apply(self, operation: Operation, *locked: int, names: Names = _NO_NAMES) -> Changed:
        """Applies *operation*, which changes *names*; the kernel holds the locks of *locked* meanwhile. Raises `GodwitError`."""
        asked_s = trio.current_time()
        held = {directory: self._caching.holding(directory) for directory, _ in names}
        try:
            with self._recalls.changing(*locked):
                applied = await self._session.apply_for_tokens([operation], timeout_s=self._timeout_s)
        except Refused:
            raise
        except GodwitError:
            self._caching.changed(held, None, asked_s)  # it may be done all the same
            raise
        still_held = [directory for directory, holding in held.items() if self._caching.is_held_since(directory, holding)]
        known = {directory: self._caching.contents(directory) for directory in still_held}
        allowed = self._caching.changed(applied.touched, applied.grant, asked_s)
        for node in (*applied.directories, *applied.nodes):
            if node is not None:
                self._caching.keep_node(node, allowed)
        for directory, contents in known.items():
            if contents is not None:
                changes = contents.changes
                changes.update({name: ino for (parent, name), ino in names.items() if parent == directory})
                self._caching.keep_contents(directory, Contents(contents.listing, changes, allowed))
        (node,) = applied.nodes
        return Changed(node, applied.tokens, allowed)

    async def make(self, create: Create) -> Changed:
        """Makes something in a directory whose lock the kernel holds. Raises `GodwitError`."""
        made = await self.apply(create, create.parent, names={(create.parent, create.name): create.ino})
        if stat.S_ISDIR(create.mode):
            self._caching.keep_contents(create.ino, Contents(None, {}, made.allowed))
        return made

    def seen(self, changed: Changed, parent: int, name: bytes) -> Seen:
        """What the kernel is told of something new in *parent*."""
        allowed = changed.allowed
        return self._caching.seen(changed.made, allowed.until_s(changed.made.ino), parent, name, allowed.until_s(parent))
