"""What `godwit import` asks: names and inodes for files that were there before, and the commits that end it."""

import errno
from functools import partial

from cluster.clock import monotonic_s
from cluster.errors import refused
from cluster.messages import Done, FinishImport, Imported, ImportedAs, ImportNames
from manager.catalog.store import Transaction
from manager.changes.content import commit_all
from manager.changes.imports import import_all
from manager.memory.mutations import Mutation
from manager.memory.sessions import Session
from manager.memory.state import State
from manager.requests.mutations import mutate
from manager.rules.limits import check_count, check_number, check_time
from manager.term import Term

NAMES_MAX = 512  # in one request: bounds for how long its transaction holds up the others


async def import_names(term: Term, session: Session, request: ImportNames) -> Imported:
    """Durable when it is answered: whoever asked then removes the names that the files had before."""
    check_count(len(request.names), NAMES_MAX, "names")
    check_time(request.now_ns)
    if not request.names:
        return Imported([])
    mutation = Mutation(session, monotonic_s())
    work = partial(_import, state=term.state, mutation=mutation, request=request)
    try:
        with term.state.changing(session, [name.ino for name in request.names if not name.mode]):
            return Imported(await mutate(term, mutation, work, durable=True, grows=True))
    finally:
        term.state.mutations.release(mutation)


def _import(tx: Transaction, *, state: State, mutation: Mutation, request: ImportNames) -> list[ImportedAs]:
    tx.after(lambda: state.mutations.done(mutation, monotonic_s()))
    return import_all(tx, state, mutation, request)


async def finish_import(term: Term, session: Session, request: FinishImport) -> Done:
    """Commits what this session has open for writing, and ends its opens."""
    check_count(len(request.commits), NAMES_MAX, "commits")
    inos = [commit.ino for commit in request.commits]
    if len(set(inos)) != len(inos):
        raise refused(errno.EINVAL, "two commits of one file")
    for commit in request.commits:
        check_number(commit.ino, "ino")
    if request.commits:
        mutation = Mutation(session, monotonic_s())
        try:
            with term.state.changing(session, inos):
                work = partial(_commit, state=term.state, mutation=mutation, request=request)
                await term.store.write_uncancelled(work)
        finally:
            term.state.mutations.release(mutation)
    closed = [term.state.sessions.close(session, ino, 1, still_open=False) for ino in inos]
    term.unused([ino for ino in closed if ino is not None])
    return Done()


def _commit(tx: Transaction, *, state: State, mutation: Mutation, request: FinishImport) -> None:
    tx.after(lambda: state.mutations.done(mutation, monotonic_s()))
    commit_all(tx, state, mutation, request.commits)
