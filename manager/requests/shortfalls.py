"""Files below their policy, and why they are.

A copy that is to be made is a task, and its state says how far that is. A file for which there is no place is a row of
`shortfalls`, with the reason. `manager.workers.shortfalls` has both looked at again.
"""

from functools import partial

from sqlalchemy import Connection, func, select

from cluster.messages import BelowPolicy, BelowPolicyRow, ListBelowPolicy, TaskOperation
from manager.catalog.inodes import path_of
from manager.catalog.schema import shortfalls, tasks
from manager.memory.sessions import Session
from manager.term import Term

LIST_MAX = 10_000


def count_below_policy(connection: Connection) -> int:
    """How many files have fewer current copies than their policy says."""
    short: int = connection.execute(select(func.count()).select_from(shortfalls)).scalar_one()
    waiting = select(func.count(tasks.c.ino.distinct())).where(
        tasks.c.operation == TaskOperation.COPY, tasks.c.ino.not_in(select(shortfalls.c.ino))
    )
    return short + int(connection.execute(waiting).scalar_one())


async def list_below_policy(term: Term, _session: Session, request: ListBelowPolicy) -> BelowPolicy:
    """These files, those for whose copies there is no place first."""
    return await term.store.read_slowly(partial(below_policy, limit=max(1, min(request.limit, LIST_MAX))))


def below_policy(connection: Connection, limit: int) -> BelowPolicy:
    """As `list_below_policy`: at most *limit* of them, and how many there are. For a thread."""
    total = count_below_policy(connection)
    found = connection.execute(select(shortfalls).order_by(shortfalls.c.ino).limit(limit)).all()
    rows = [BelowPolicyRow(row.ino, path_of(connection, row.ino), row.reason, row.since_ns) for row in found]
    known = {row.ino for row in rows}
    queued = connection.execute(
        select(tasks).where(tasks.c.operation == TaskOperation.COPY).order_by(tasks.c.task).limit(limit)
    ).all()
    for row in queued:
        if row.ino not in known and len(rows) < limit:
            known.add(row.ino)
            reason = f"a copy is {row.state} in the queue of {row.server}" + (f": {row.error}" if row.error else "")
            rows.append(BelowPolicyRow(row.ino, path_of(connection, row.ino), reason, row.queued_ns))
    return BelowPolicy(rows, total)
