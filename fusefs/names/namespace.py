"""Changes of names that are there: links, removals, renames."""

from cluster.clock import file_time_ns
from cluster.messages import RENAME_EXCHANGE, Link, Node, Rename, Rmdir, Unlink
from fusefs.caching.cache import Caching, EntryReply
from fusefs.caching.changes import Changed, Changes
from fusefs.caching.held import Names
from fusefs.content.attributes import Attributes, with_content_of
from fusefs.content.last_paths import LastKnownPaths
from fusefs.content.open_files import OpenFiles
from fusefs.names.directories import Directories
from fusefs.names.lookups import Lookups


class Namespace:
    """Changes names. All methods raise `GodwitError`."""

    def __init__(
        self,
        caching: Caching,
        changes: Changes,
        attributes: Attributes,
        open_files: OpenFiles,
        directories: Directories,
        lookups: Lookups,
        paths: LastKnownPaths,
    ) -> None:
        self._caching = caching
        self._changes = changes
        self._attributes = attributes
        self._open_files = open_files
        self._directories = directories
        self._lookups = lookups
        self._paths = paths

    async def link(self, ino: int, parent: int, name: bytes) -> EntryReply:
        # The home is asked before: from the manager's answer on others may act on the name, which the kernel does not know yet.
        before, current = await self._attributes.glance((await self._lookups.node(ino))[0])
        linked = await self._changes.apply(Link(ino, parent, name, file_time_ns()), parent, names={(parent, name): ino})
        return self._linked(linked, parent, name, before, current=current)

    def link_known(self, ino: int, parent: int, name: bytes) -> EntryReply | None:
        """As `link`, without a task; None, and nothing has changed, if somebody has to be asked."""
        kept = self._caching.node(ino)
        before = None if kept is None else self._attributes.at_once(kept[0])
        if before is None:
            return None
        linked = self._changes.apply_known(Link(ino, parent, name, file_time_ns()))
        return None if linked is None else self._linked(linked, parent, name, before, current=True)

    def _linked(self, linked: Changed, parent: int, name: bytes, before: Node, *, current: bool) -> EntryReply:
        """What the kernel is told of a link; *before*: the node with its content before, which may not be *current*."""
        ino = linked.made.ino
        self._paths.note(ino, parent, name)
        if (state := self._open_files.get(ino)) is not None:
            state.policy_known(None)  # it may have had no name, and so no policy
        node = self._attributes.at_once(linked.made) or with_content_of(before, linked.made)
        permit = linked.permit
        attr_until_s = permit.until_s(ino) if current else 0.0
        return self._caching.entry_reply(node, attr_until_s, parent, name, permit.until_s(parent)).to_ask_again()

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._changes.apply(Unlink(parent, name, file_time_ns()), parent, names={(parent, name): 0})
        self._caching.removed_name(parent, name)

    def unlink_known(self, parent: int, name: bytes) -> bool:
        """As `unlink`, without a task; False, and nothing has changed, if somebody has to be asked."""
        if self._changes.apply_known(Unlink(parent, name, file_time_ns())) is None:
            return False
        self._caching.removed_name(parent, name)
        return True

    async def rmdir(self, parent: int, name: bytes) -> None:
        victim = await self._lookups.ino_in_kernel(parent, name)
        # The kernel holds the locks of both, also of the one that goes.
        with self._changes.under_way(parent, victim):
            await self._directories.register(victim)
            await self._changes.apply(Rmdir(parent, name, file_time_ns()), names={(parent, name): 0})
            self._caching.removed_name(parent, name)

    def rmdir_known(self, parent: int, name: bytes) -> bool:
        """As `rmdir`, without a task; False, and nothing has changed, if somebody has to be asked."""
        victim = self._lookups.ino_in_kernel_known(parent, name)
        if victim is None or self._directories.is_open_quietly(victim):
            return False
        if self._changes.apply_known(Rmdir(parent, name, file_time_ns())) is None:
            return False
        self._caching.removed_name(parent, name)
        return True

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        # Before the inodes are looked up: what they are is known only if nobody else changed the directories since.
        held = {directory: self._caching.holding(directory) for directory in (parent, new_parent)}
        source, target = await self._lookups.ino_in_kernel(parent, name), await self._lookups.ino_in_kernel(new_parent, new_name)
        with self._changes.under_way(parent, new_parent, source, target):
            await self._directories.register(target)
            exchange = bool(flags & RENAME_EXCHANGE)
            names: Names = {(parent, name): None, (new_parent, new_name): None}
            if all(self._caching.is_held_since(directory, holding) for directory, holding in held.items()):
                # Nothing happens to two names of one inode.
                names = {} if source == target else {(parent, name): target if exchange else 0, (new_parent, new_name): source}
            await self._changes.apply(Rename(parent, name, new_parent, new_name, flags, file_time_ns()), names=names)
            # The kernel moves its entry by itself, with the timeout of the old name, for which there may be no lease.
            until_s = self._caching.moved_name((parent, name), (new_parent, new_name), exchange=exchange)
            await self._changes.expire_names(until_s)

    def rename_known(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> bool:
        """As `rename`, without a task; False, and nothing has changed, if somebody has to be asked."""
        if not self._changes.can_expire_names:
            return False
        # No directory is replaced by this, so none has to be registered.
        if self._changes.apply_known(Rename(parent, name, new_parent, new_name, flags, file_time_ns())) is None:
            return False
        self._changes.expire_names_known(self._caching.moved_name((parent, name), (new_parent, new_name), exchange=False))
        return True
