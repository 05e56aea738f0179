"""What a migration would do, without doing it: for `--dry-run`. Reads only, in a thread, within a bound."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection

from cluster.messages import MigrationPlan, PlanMigration
from manager.catalog.inodes import InodeRow, children, find_inode, needed_bytes, path_of
from manager.changes.alignment import replicas_of
from manager.changes.migrations import pick_target
from manager.changes.planning import moved_by_others
from manager.changes.selectors import PLAN_BATCH
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.requests.migrations import PATHS_MAX, check_servers
from manager.rules.limits import check_count, check_number
from manager.rules.moves import Move, look_at_target, out_of_reach, taken_by
from manager.rules.placement import Holding, Place, lay_out
from manager.term import Term

FILES_MAX = 1_000_000  # that are judged; beyond, the plan says that it is cut short
PROBLEMS_MAX = 100  # files that are named


@dataclass
class _Tally:
    files: int = 0  # that can be moved
    size: int = 0  # of these, in bytes
    problem_files: int = 0  # that cannot be moved
    problem_size: int = 0  # of these, in bytes
    problems: list[tuple[bytes, str]] = field(default_factory=list)  # path and reason of the first `PROBLEMS_MAX`
    in_use: int = 0  # of those that can be moved: homes that have to be closed first


async def plan_migration(term: Term, _session: Session, request: PlanMigration) -> MigrationPlan:
    """Walks the paths and judges each file as a move would be judged, with the room that the files before it leave."""
    check_count(len(request.inodes), PATHS_MAX, "paths")
    for ino in request.inodes:
        check_number(ino, "inode")
    check_servers(term.state.members, request.source, request.target)
    return await term.store.read_slowly(lambda connection: _plan(connection, term.state, request))


def _plan(connection: Connection, state: State, request: PlanMigration) -> MigrationPlan:
    # A copy: each file takes its room away from those after it.
    places = dict(state.members.places())
    sources = set(state.members.of_server(request.source))
    tally = _Tally()
    truncated = False
    for inode in _files(connection, request.inodes):
        held = [row for row in replicas_of(connection, inode.ino) if row.volume in sources]
        if not held:
            continue
        if tally.files + tally.problem_files >= FILES_MAX:
            truncated = True
            break
        problem = _judge(connection, state, inode, request.target, sources, places)
        if problem:
            tally.problem_files += 1
            tally.problem_size += inode.size
            if len(tally.problems) < PROBLEMS_MAX:
                tally.problems.append((path_of(connection, inode.ino), problem))
            continue
        tally.files += 1
        tally.size += inode.size
        tally.in_use += any(row.volume == inode.home_volume for row in held) and bool(inode.dirty)
    return MigrationPlan(
        tally.files, tally.size, tally.problem_files, tally.problem_size, tally.problems, tally.in_use, truncated
    )


def _files(connection: Connection, inodes: list[int]) -> Iterator[InodeRow]:
    """All files at and below *inodes*, each once."""
    visited: set[int] = set()
    left = inodes[::-1]
    while left:
        inode = find_inode(connection, left.pop())
        if inode is None or inode.ino in visited:
            continue
        visited.add(inode.ino)
        if not stat.S_ISDIR(inode.mode):
            if inode.home_volume and inode.nlink:
                yield inode
            continue
        after = 0
        while True:
            page = children(connection, inode.ino, after, PLAN_BATCH)
            for child in page:
                if stat.S_ISDIR(child.mode):
                    left.append(child.ino)
                elif child.home_volume and child.ino not in visited:
                    # Only these can be met again, which keeps the set small.
                    if child.nlink > 1:
                        visited.add(child.ino)
                    yield child
            if len(page) < PLAN_BATCH:
                break
            after = page[-1].cookie


def _judge(
    connection: Connection, state: State, inode: InodeRow, target_server: str, sources: set[int], places: dict[int, Place]
) -> str:
    """Why the file cannot be moved; empty if it can, and then its target has less room in *places*."""
    other = moved_by_others(connection, inode.ino, 0)
    if other:
        return taken_by(other)
    held = {row.volume: row for row in replicas_of(connection, inode.ino)}
    target = pick_target(inode.ino, needed_bytes(inode), target_server, held, places)
    obstacle = look_at_target(Move(0, 0, target, ""), needed_bytes(inode), held, places)
    if obstacle is not None:
        return obstacle.text
    copies = state.policies.of_inode(connection, inode.ino).copies
    layout = lay_out(
        ino=inode.ino,
        size=needed_bytes(inode),
        home=inode.home_volume,
        copies=copies,
        holdings=[Holding(row.volume, row.version == inode.version and not row.fault) for row in held.values()],
        places=places,
        leaving=sources & set(held),
        pinned={target},
    )
    if len(layout.wanted) < copies:
        return out_of_reach(copies, layout)
    for volume in set(layout.wanted) - set(held):
        places[volume] = replace(places[volume], free_bytes=places[volume].free_bytes - needed_bytes(inode))
    return ""
