"""`godwit servers lost`: gives up a server that will not come back; its files fall back to what others have.

The state in the catalog is what drives it: the volumes of a lost server are scanned (`manager.changes.volume_scans`), a few files
in a transaction, and each is aligned, which moves its home (`manager.changes.alignment`, `manager.changes.fallback`). So it goes
on under the next manager.
"""

import errno
from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, case, func, select, update

from cluster.errors import refused
from cluster.membership import Event, ServerState
from cluster.messages import LosePlan, LoseServer
from manager.catalog.inodes import path_of
from manager.catalog.schema import inodes, replicas, servers
from manager.catalog.store import Transaction
from manager.changes.epochs import revoke
from manager.changes.standing import change_standing, stored_standing
from manager.memory.members import Members
from manager.memory.sessions import Session
from manager.requests.migrations import cancel_drains
from manager.requests.servers import end_sessions, require_another
from manager.term import Term

SHOWN_MAX = 100  # paths of files that would be gone

_others = replicas.alias("others")
# For each home the newest sound replica elsewhere: what `rules.alignment.newest_replica` would choose from.
_BEST = (
    select(func.max(_others.c.version))
    .where(
        _others.c.ino == inodes.c.ino,
        _others.c.volume.in_(bindparam("elsewhere", expanding=True)),
        _others.c.fault == "",
        _others.c.stamp_ctime_ns.is_not(None),
    )
    .correlate(inodes)
    .scalar_subquery()
)
_HOMES = (
    select(inodes.c.ino, inodes.c.size, inodes.c.dirty, inodes.c.version, _BEST.label("best"))
    .join_from(replicas, inodes, inodes.c.ino == replicas.c.ino)
    .where(replicas.c.volume.in_(bindparam("volumes", expanding=True)), inodes.c.home_volume == replicas.c.volume)
    .subquery()
)
_KIND = case(
    (_HOMES.c.best.is_(None), "only"), ((_HOMES.c.best < _HOMES.c.version) | (_HOMES.c.dirty == 1), "older"), else_="whole"
)
_COUNT = select(_KIND.label("kind"), func.count().label("files"), func.coalesce(func.sum(_HOMES.c.size), 0)).group_by(_KIND)
_ONLY = select(_HOMES.c.ino).where(_HOMES.c.best.is_(None)).order_by(_HOMES.c.ino).limit(SHOWN_MAX)


async def lose_server(term: Term, session: Session, request: LoseServer) -> LosePlan:
    """Declares the server lost, unless it is a dry run; what that means for its files, as they were before."""
    members, server = term.state.members, request.server
    member = members.require(server)
    require_another(session, server)
    if server == term.config.server:
        raise refused(errno.EBUSY, f"{server} is the manager")
    if member.state not in (ServerState.DOWN, ServerState.LOST) and not (request.force and not members.is_up(server)):
        raise refused(
            errno.EBUSY,
            f"{server} is {member.state}: only a server that is down can be lost (or with --force, one that is silent)",
        )
    # Of the state before the change; `_lose` looks at the server's state again.
    plan = await term.store.read_slowly(lambda connection: plan_loss(connection, members, server, members.of_server(server)))
    if not request.dry_run:
        await term.store.write_uncancelled(lambda tx: _lose(tx, term, server), durable=True)
    return plan


def plan_loss(connection: Connection, members: Members, what: str, volumes: Sequence[int]) -> LosePlan:
    """What it means for files to lose these *volumes*, which are called *what*."""
    known = [volume.volume for volume in members.volumes()]
    elsewhere = [number for number in known if number not in volumes and not members.is_lost(number)]
    query = {"volumes": list(volumes), "elsewhere": elsewhere}
    counts = {kind: (int(files), int(size)) for kind, files, size in connection.execute(_COUNT, query)}
    only = [path_of(connection, ino) for ino in connection.execute(_ONLY, query).scalars()]
    nothing = (0, 0)
    return LosePlan(what, *counts.get("whole", nothing), *counts.get("older", nothing), *counts.get("only", nothing), only)


def _lose(tx: Transaction, term: Term, server: str) -> None:
    # Silent, but not yet down: the table of states knows no way from up to lost.
    if stored_standing(tx, server).state not in (ServerState.DOWN, ServerState.LOST):
        change_standing(tx, term.state, term.claims, server, Event.SILENT_TOO_LONG)
    change_standing(tx, term.state, term.claims, server, Event.LOSE)
    tx.execute(update(servers).where(servers.c.server == server).values(mount_session=0, agent_session=0))
    cancel_drains(tx, term, server)
    # Who finds its disks, keys and all, is not let in by them.
    revoke(tx, server, term.have_revoked)
    tx.after(lambda: end_sessions(term, server))
