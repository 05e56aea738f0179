"""Repairs one replica after a comparison. Nothing is deleted, and the last copy of anything is never moved.

| the object | then |
|---|---|
| is missing, and is in the trash or in `unknown/` | it is brought back; a newer one of a home is committed |
| has the right content and another stamp | the catalog learns the stamp |
| is a home's, and newer than the catalog | it is committed |
| else | the manager is told: another current replica becomes the home, a new copy is made |

The caller holds the inode's lock, so that no task of this agent works on the object.
"""

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from agent.checking.comparison import Kind, Observed, best_of, is_newer, is_the_content, judge
from agent.checking.inspection import look_at
from agent.objects.disk_batches import DiskWork
from agent.objects.open_objects import ObjectKey, OpenObjects
from agent.objects.set_aside import parts_of
from agent.objects.staging import make_object_directory
from agent.volumes.volume import LocalVolume
from cluster.durable import sync_directory
from cluster.errors import GodwitError, error_text
from cluster.messages import (
    MISSING,
    BeginCommit,
    FindingOutcome,
    ListReplicas,
    Node,
    Operation,
    ReplicaState,
    ReportDamage,
    Restamp,
)
from cluster.rpc.session import ManagerSession
from cluster.volume.content import commit_object, object_lock
from cluster.volume.fence import despite_fence, is_fenced

log = logging.getLogger(__name__)

MANAGER_TIMEOUT_S = 30.0  # one question of a check, which nobody on a mount waits for

Result = tuple[FindingOutcome, str]
"""`FindingOutcome.MENDED` or `FindingOutcome.LEFT`, and what was done or why not."""


class SetAside:
    """The files in the trash and in `unknown/` of a volume, by inode; listed once, when they are first asked for.

    With *only* those of one inode: 0.1 s for 100,000 files, and nothing of it is kept in memory.
    """

    def __init__(self, volume: LocalVolume, only: int | None = None) -> None:
        self._volume = volume  # whose trash and `unknown/` these are
        self._prefix = "" if only is None else f"{only}."
        self._paths: dict[int, list[str]] | None = None  # None until somebody asks: most checks find nothing missing

    async def of(self, ino: int) -> list[str]:
        if self._paths is None:
            self._paths = await trio.to_thread.run_sync(self._list, limiter=self._volume.bulk_io)
        return self._paths.get(ino, [])

    def _list(self) -> dict[int, list[str]]:
        paths: dict[int, list[str]] = {}
        for folder in (self._volume.layout.trash, self._volume.layout.unknown):
            for name in _names(folder):
                parts = parts_of(name) if name.startswith(self._prefix) else None
                if parts is not None:
                    paths.setdefault(parts.ino, []).append(f"{folder}/{name}")
        return paths


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


class Mender:
    """Mends replicas of this server's volumes."""

    def __init__(self, works: Callable[[int], DiskWork], session: ManagerSession, objects: OpenObjects) -> None:
        self._works = works  # a volume's threads, by its number
        self._session = session  # whom the catalog is asked of
        self._objects = objects  # descriptors of what is replaced are forgotten

    async def row_of(self, volume: int, ino: int) -> ReplicaState | None:
        """What the catalog says of one replica at this moment."""
        request = ListReplicas(volume, ino - 1, 1, with_paths=True)
        found = (await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)).replicas
        return found[0] if found and found[0].ino == ino else None

    async def bring_back(self, volume: LocalVolume, ino: int) -> bool:
        """Puts a missing object back if it was set aside, and tells the catalog; whether it was. Raises `OSError` if its disk is
        away. The caller holds the lock.
        """
        await self._works(volume.number).in_thread(volume.require_there)
        row = await self.row_of(volume.number, ino)
        if row is None or judge(row, None) is None:
            return False
        try:
            return await self._bring_back(volume, row, SetAside(volume, ino)) is not None
        except OSError as error:  # of a file that was set aside: other replicas are not to wait for it
            log.error("inode %d on volume %d is missing and cannot be brought back: %s", ino, volume.number, error_text(error))
            return False

    async def mend(
        self, volume: LocalVolume, row: ReplicaState, observed: Observed | None, kind: Kind, aside: SetAside
    ) -> Result:
        """What became of a replica that is different in the way of *kind*."""
        try:
            if observed is None:
                return await self._bring_back(volume, row, aside) or await self._give_up(volume, row, None, MISSING)
            fault = describe(row, observed, kind)
            if kind in (Kind.VERSION, Kind.SIZE, Kind.STAMP):
                return await self._accept(volume, row) or await self._give_up(volume, row, observed, fault)
            return await self._give_up(volume, row, observed, fault)
        except (GodwitError, OSError) as error:
            return FindingOutcome.LEFT, error_text(error)

    async def _bring_back(self, volume: LocalVolume, row: ReplicaState, aside: SetAside) -> Result | None:
        found = [
            (path, observed)
            for path in await aside.of(row.ino)
            if (observed := await self._look(volume, path, deep=True)) is not None
        ]
        path = best_of(row, found)
        if path is None:
            return None
        # Back on the disk before the catalog hears of it: a crash in between leaves an object that the next check finds.
        await self._works(volume.number).in_thread(_put_back, volume, path, row.ino)
        self._objects.forget(ObjectKey(volume.number, row.ino))
        what = f"brought back from {os.path.dirname(path)}"
        log.warning("inode %d on volume %d was missing and is %s", row.ino, volume.number, what)
        accepted = await self._accept(volume, row)
        return (
            (FindingOutcome.MENDED, what) if accepted is not None else (FindingOutcome.LEFT, f"{what}, but it has changed since")
        )

    async def _look(self, volume: LocalVolume, path: str, *, deep: bool) -> Observed | None:
        return await self._works(volume.number).in_thread(partial(look_at, path, deep=deep))

    async def _accept(self, volume: LocalVolume, row: ReplicaState) -> Result | None:
        """Tells the catalog the object's stamp if its content is right, commits the object if it is newer; None if neither."""
        path = volume.layout.object_path(row.ino)
        observed = await self._look(volume, path, deep=bool(row.checksum))
        if observed is None:
            return None
        if is_the_content(row, observed) and not (row.is_home and row.dirty):
            assert row.stamp is not None
            await self._call_restamp(volume, row, observed)
            return FindingOutcome.MENDED, "its content is right: the catalog knows its new stamp"
        if is_newer(row, observed) or (row.dirty and is_the_content(row, observed)):
            await self._commit(volume, row.ino, path)
            return FindingOutcome.MENDED, "it was newer than the catalog: committed"
        return None

    async def _call_restamp(self, volume: LocalVolume, row: ReplicaState, observed: Observed) -> None:
        assert row.stamp is not None
        request = Restamp(volume.number, row.ino, row.version, row.stamp, observed.stamp)
        await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)

    async def _commit(self, volume: LocalVolume, ino: int, path: str) -> None:
        async with object_lock(path) as descriptor:
            # A mount may have committed, or the home may have moved, while the lock was waited for.
            begun = await self._session.call(BeginCommit(ino), timeout_s=MANAGER_TIMEOUT_S)
            if begun.node.home_volume != volume.number:
                return
            fenced = is_fenced(descriptor)
            await commit_object(descriptor, begun.node, b"", final=True, apply=self._apply, begun=begun.number, fenced=fenced)

    async def _apply(self, operation: Operation) -> Node:
        return await self._session.apply_one(operation, timeout_s=MANAGER_TIMEOUT_S)

    async def _give_up(self, volume: LocalVolume, row: ReplicaState, observed: Observed | None, fault: str) -> Result:
        """Reports the replica as damaged, so that the manager counts it no more."""
        # Reported as damaged, the manager would let it fall back: what was written and never committed would be lost for good.
        if row.stamp is None or (row.is_home and row.dirty):
            return FindingOutcome.LEFT, f"{fault}; what it had was not committed, and is nowhere else as far as the catalog knows"
        request = ReportDamage(volume.number, row.ino, row.version, row.stamp, fault)
        damage = await self._session.call(request, timeout_s=MANAGER_TIMEOUT_S)
        after = await self.row_of(volume.number, row.ino)
        if damage.pending:
            return FindingOutcome.MENDED, f"{fault}; another replica takes over as soon as nobody can be writing the file"
        if not row.others or (after is not None and after.is_home):
            return FindingOutcome.LEFT, f"{fault}; no other replica has its content: godwit where, godwit accept"
        if after is not None and observed is not None and not _is_older(row, observed):
            # A copy is about to be put over it.
            await self._works(volume.number).quarantine.submit(row.ino)
            self._objects.forget(ObjectKey(volume.number, row.ino))
            return FindingOutcome.MENDED, f"{fault}; set aside, other replicas are copied"
        return FindingOutcome.MENDED, f"{fault}; other replicas are copied"


def _is_older(row: ReplicaState, observed: Observed) -> bool:
    """Whether the object has an older version, on which the catalog's was built."""
    return observed.record is not None and observed.record.version < row.version


def describe(row: ReplicaState, observed: Observed | None, kind: Kind) -> str:
    """What is wrong, for people."""
    match kind:
        case Kind.MISSING:
            return MISSING
        case Kind.UNREADABLE if observed is not None:
            return f"its object cannot be read: {observed.error}"
        case Kind.VERSION if observed is not None and observed.record is not None:
            return f"its object has version {observed.record.version} instead of {row.version}"
        case Kind.SIZE if observed is not None and row.stamp is not None:
            return f"its object has {observed.stamp.size} bytes instead of {row.stamp.size}"
        case Kind.DIGEST if observed is not None:
            return f"its content has the digest {observed.digest.hex()}"
        case _:
            return "its object was changed by somebody else than Godwit"


def _put_back(volume: LocalVolume, path: str, ino: int) -> None:
    """Makes a file that was set aside the object again, durably. Raises `FileExistsError` if there is one. Blocks."""
    target = volume.layout.object_path(ino)
    make_object_directory(os.path.dirname(target))
    # rename replaces silently: a mount may have made the object anew.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    despite_fence(path, partial(os.rename, path, target))
    # The new name before the old one's absence: after a crash it has one of both.
    sync_directory(os.path.dirname(target))
    sync_directory(os.path.dirname(path))
