"""Which policy is in force where: that of the nearest directory upwards that has one of its own.

That directory need not say how names may be changed: then the next one above that does, or else the network's default.

Most clusters have a policy only at the root; then nothing is looked up. Otherwise what was found for a directory is
remembered, within a bound, until any policy changes or any directory moves.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, cast, func, literal_column, select

from cluster.messages import ROOT_INO, NamesPolicy
from manager.catalog.hot import Hot
from manager.catalog.inodes import PATH_DEPTH_MAX, parent_of
from manager.catalog.schema import dentries, policies

CACHE_MAX = 10_000  # directories
COPIES_MAX = 16  # of one file
NAMES_DEFAULT = NamesPolicy.HELD  # where no directory says it

_COLUMNS = (policies.c.ino, policies.c.copies, policies.c.sync_copies, policies.c.names)
_OWN = Hot(select(*_COLUMNS).where(policies.c.ino == bindparam("ino")))
_SOME = Hot(select(func.count()).select_from(select(literal_column("1")).select_from(policies).limit(2).subquery()))


class Policy(NamedTuple):
    """How many volumes keep a file, and how names may be changed."""

    ino: int  # of the directory on which it is set
    copies: int  # the home included
    sync_copies: int  # of these, how many an fsync waits for
    names: NamesPolicy  # in force
    names_ino: int  # of the directory that says so, this one or one above; 0: none does, and it is the default

    @property
    def names_held(self) -> bool:
        """Whether a mount that is alone in a directory may change it by itself, and tell the manager afterwards."""
        return self.names is NamesPolicy.HELD


class Policies:
    """The cache. The event loop and the store's thread both use it: every step on it is one dictionary operation."""

    def __init__(self) -> None:
        self._found: OrderedDict[int, Policy] = OrderedDict()  # by directory, oldest first
        self._only_root: Policy | None = None  # set where only the root has a policy: then nothing else is looked at

    def clear(self) -> None:
        """Something changed: call it in the body that changes it, and again after its commit."""
        self._found = OrderedDict()
        self._only_root = None

    @property
    def is_one_for_all(self) -> bool:
        """Whether it is known that no directory but the root has a policy."""
        return self._only_root is not None

    def root(self, connection: Connection) -> Policy:
        """The policy of whatever has none nearer."""
        return self.of_directory(connection, ROOT_INO)

    def of_directory(self, connection: Connection, directory: int) -> Policy:
        """The policy in force for what is directly in the directory."""
        only = self._only_root
        if only is None:
            only = self._look_for_others(connection)
        if only is not None:
            return only
        found = self._found
        policy = found.get(directory)
        if policy is None:
            policy = _climb(connection, directory)
            found[directory] = policy
            if len(found) > CACHE_MAX:
                found.popitem(last=False)
        return policy

    def of_inode(self, connection: Connection, ino: int) -> Policy:
        """The policy in force for a file; with names in several directories, that of one of them."""
        if self._only_root is not None:
            return self._only_root
        parent = parent_of(connection, ino)
        return self.root(connection) if parent is None else self.of_directory(connection, parent)

    def _look_for_others(self, connection: Connection) -> Policy | None:
        if self._found or _SOME.one_or_none(connection, {})[0] > 1:
            return None
        root = _OWN.one_or_none(connection, {"ino": ROOT_INO})
        self._only_root = _in_force(root, root)
        return self._only_root


def own_policies(connection: Connection) -> list[Policy]:
    """The policies of all directories that have one of their own, by number; these are not cached."""
    rows = connection.execute(select(policies.c.ino).order_by(policies.c.ino)).scalars().all()
    return [_climb(connection, ino) for ino in rows]


def count_differing(connection: Connection, names: NamesPolicy) -> int:
    """How many directories have a policy that says otherwise of names."""
    differing = select(func.count()).select_from(policies).where(policies.c.names.not_in(["", names.value]))
    return int(connection.execute(differing).scalar_one())


def _climb(connection: Connection, directory: int) -> Policy:
    """The policy of the nearest directory that has one, with what the nearest that says it says of names."""
    nearest: Any = None
    ino: int | None = directory
    # A bound, for a tree that is damaged.
    for _ in range(PATH_DEPTH_MAX):
        row = _OWN.one_or_none(connection, {"ino": ino})
        nearest = nearest or row
        if row is not None and row.names:
            return _in_force(nearest, row)
        ino = parent_of(connection, ino) if ino is not None else None
        if ino is None:
            break
    root = _OWN.one_or_none(connection, {"ino": ROOT_INO})
    return _in_force(nearest or root, root)


def _in_force(nearest: Any, speaking: Any) -> Policy:
    """The policy of row *nearest*, with what row *speaking* says of names, if it says something."""
    names, names_ino = (NamesPolicy(speaking.names), speaking.ino) if speaking.names else (NAMES_DEFAULT, 0)
    return Policy(nearest.ino, nearest.copies, nearest.sync_copies, names, names_ino)


def is_below(connection: Connection, ino: int, ancestor: int) -> bool:
    """Whether *ino* is *ancestor* or somewhere beneath it."""
    start = select(cast(ino, BigInteger).label("ino")).cte("up", recursive=True)
    up = start.union(select(dentries.c.parent).join(start, dentries.c.ino == start.c.ino))
    return (
        connection.execute(select(literal_column("1")).select_from(up).where(up.c.ino == ancestor).limit(1)).first() is not None
    )
