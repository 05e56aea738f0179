"""Changes that the kernel asks for: made by this mount where it is alone, else by the manager; then applied to what is cached."""

import stat
from contextlib import AbstractContextManager
from typing import NamedTuple

import trio

from cluster.errors import GodwitError, Refused
from cluster.messages import Applied, Create, Node, Operation
from cluster.rpc.session import ManagerSession
from cluster.rpc.waiters import current_waiter
from fusefs.caching.cache import Caching, EntryReply
from fusefs.caching.grants import Permit
from fusefs.caching.held import NO_NAMES, Done, HeldDirectories, Names
from fusefs.caching.listings import Contents
from fusefs.caching.recalls import Recalls


class Change(NamedTuple):
    """What was changed, or may have been."""

    inodes: tuple[int, ...]
    names: tuple[tuple[int, bytes], ...]  # each with its directory


def note_change(inodes: tuple[int, ...], names: Names) -> None:
    """Notes what is changed by this task, for the case that whoever it works for is not answered."""
    if (waiter := current_waiter()) is not None:
        waiter.changes.append(Change(inodes, tuple(names)))


class Changed(NamedTuple):
    """What became of one operation."""

    node: Node | None  # of what was made or changed; None for a removal
    tokens: list[bytes]  # the lease tokens of what was created
    permit: Permit

    @property
    def made(self) -> Node:
        """The node of an operation that makes or changes an inode."""
        assert self.node is not None
        return self.node


class Changes:
    """Applies operations one by one."""

    def __init__(
        self, session: ManagerSession, held: HeldDirectories, caching: Caching, recalls: Recalls, timeout_s: float
    ) -> None:
        self._session = session
        self._held = held
        self._caching = caching
        self._recalls = recalls
        self._timeout_s = timeout_s

    def under_way(self, *locked: int) -> AbstractContextManager[None]:
        """While inside, the kernel holds the locks of these directories: `Recalls.changing`."""
        return self._recalls.changing(*locked)

    @property
    def can_expire_names(self) -> bool:
        """Whether `expire_names_known` may be called."""
        return self._recalls.can_expire_names

    def expire_names_known(self, until_s: float) -> None:
        """As `expire_names`, without a task."""
        self._recalls.expire_names_known(until_s)

    async def expire_names(self, until_s: float) -> None:
        """Has the kernel forget names, from within a change: `Recalls.outlive`."""
        await self._recalls.expire_names(until_s)

    async def apply(self, operation: Operation, *locked: int, names: Names = NO_NAMES, near: int = 0) -> Changed:
        """Applies *operation*, which changes *names*; the kernel holds the locks of *locked* meanwhile. Raises `GodwitError`.

        *near*: where the inode that it changes has a name, if it changes none.
        """
        # The manager may have others recalled for this, and these us for theirs: see `fusefs.caching.recalls`.
        with self._recalls.changing(*locked):
            done = await self._apply_here(operation, tuple(directory for directory, _ in names) or ((near,) if near else ()))
            return await self._ask(operation, names) if done is None else self._done_here(done)

    def is_alone(self, directory: int) -> bool:
        """Whether this mount may change names there by itself; if not, `apply_known` changes nothing."""
        return self._held.is_alone(directory)

    def apply_known(self, operation: Operation) -> Changed | None:
        """As `apply`, without a task; None, and nothing has changed, if the manager has to be asked."""
        done = self._held.apply(operation)
        return None if done is None else self._done_here(done)

    async def _ask(self, operation: Operation, names: Names) -> Changed:
        asked_s = trio.current_time()
        # Before the question: only a directory that is held without a gap until the answer has no other changes in between.
        held = {directory: self._caching.holding(directory) for directory, _ in names}
        try:
            applied = await self._session.apply_for_tokens([operation], timeout_s=self._timeout_s)
        except Refused:
            raise
        except GodwitError:
            note_change((), names)
            self._caching.changed(held, None, asked_s)  # it may be done all the same
            raise
        # No await from here on: what is cached changes in the step in which the answer came.
        still_held = [directory for directory, holding in held.items() if self._caching.is_held_since(directory, holding)]
        return self._changed(applied, names, still_held, asked_s)

    async def _apply_here(self, operation: Operation, directories: tuple[int, ...]) -> Done | None:
        """Makes the change if this mount is alone, or can be at once; else None, and nothing has changed."""
        done = self._held.apply(operation)
        if done is None and directories and await self._held.prepare(directories):
            done = self._held.apply(operation)
        return done

    def _done_here(self, done: Done) -> Changed:
        directories = list(dict.fromkeys(directory for directory, _ in done.names))
        return self._changed(done.applied, done.names, directories, trio.current_time())

    def _changed(self, applied: Applied, names: Names, still_held: list[int], asked_s: float) -> Changed:
        """Applies to what is cached what became of an operation; in *still_held* nobody else has changed names since."""
        note_change(tuple(applied.touched), names)
        # Taken out before `changed` drops it, as any change does, and put back with the change in it.
        known = {directory: self._caching.contents(directory) for directory in still_held}
        permit = self._caching.changed(applied.touched, applied.grant, asked_s)
        for node in (*applied.directories, *applied.nodes):
            if node is not None:
                self._caching.keep_node(node, permit)
        for directory, contents in known.items():
            if contents is not None:
                changes = contents.changes
                changes.update({name: ino for (parent, name), ino in names.items() if parent == directory})
                self._caching.keep_contents(directory, Contents(contents.listing, changes, permit))
        (node,) = applied.nodes
        return Changed(node, applied.tokens, permit)

    async def make(self, create: Create) -> Changed:
        """Makes something in a directory whose lock the kernel holds. Raises `GodwitError`."""
        return self._made(create, await self.apply(create, create.parent, names={(create.parent, create.name): create.ino}))

    def make_known(self, create: Create) -> Changed | None:
        """As `make`, without a task; None, and nothing has changed, if the manager has to be asked."""
        made = self.apply_known(create)
        return None if made is None else self._made(create, made)

    def _made(self, create: Create, made: Changed) -> Changed:
        if stat.S_ISDIR(create.mode):
            # It is known to be empty: what is made in it needs no lookup before (an archive that is unpacked, a checkout).
            self._caching.keep_contents(create.ino, Contents(None, {}, made.permit))
        return made

    def entry_reply_unnamed(self, changed: Changed) -> EntryReply:
        """What the kernel is told of something new that has no name."""
        return self._caching.entry_reply(changed.made, changed.permit.until_s(changed.made.ino))

    def entry_reply(self, changed: Changed, parent: int, name: bytes) -> EntryReply:
        """What the kernel is told of something new in *parent*."""
        permit = changed.permit
        return self._caching.entry_reply(changed.made, permit.until_s(changed.made.ino), parent, name, permit.until_s(parent))
