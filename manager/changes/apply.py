"""Mutations, applied once: the reply is stored in the transaction of the effect, and a repeat finds it there."""

from collections.abc import Sequence

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select

from cluster.clock import monotonic_s
from cluster.decoding import Decode, from_msgpack
from cluster.messages import Applied, Apply, Commit, Node, Operation
from manager.catalog.hot import Hot
from manager.catalog.inodes import find_inode, node_of
from manager.catalog.schema import applied
from manager.catalog.store import Transaction
from manager.changes.content import commit_all
from manager.changes.operations import OPERATIONS, directories_of
from manager.memory.mutations import Mutation
from manager.memory.sessions import Session
from manager.memory.state import State

OPERATIONS_MAX = 1000  # in one request: bounds for how long its transaction holds up the others
TRIM_STEP = 64  # acknowledged replies are deleted when so many have come together

_encode = msgspec.msgpack.Encoder().encode
_decode: Decode[Applied] = from_msgpack(Applied)

_FIND = Hot(
    select(applied.c.reply).where(applied.c.session == bindparam("session"), applied.c.request_id == bindparam("request_id"))
)
_STORE = Hot(insert(applied))
# A range of the primary key (session, request_id), as is `_NEWEST`.
_TRIM = delete(applied).where(applied.c.session == bindparam("b_session"), applied.c.request_id < bindparam("b_floor"))
_NEWEST = select(func.max(applied.c.request_id)).where(applied.c.session == bindparam("session"))


def newest_reply(tx: Transaction, session: int) -> int:
    """The largest id of a stored reply of the session, 0 if there is none."""
    return tx.execute(_NEWEST, {"session": session}).scalar_one() or 0


def apply_operations(tx: Transaction, state: State, mutation: Mutation, request: Apply) -> Applied:
    """Applies all operations in order, or none. A repeat changes nothing, and gets the stored reply.

    Raises `HeldElsewhere` if others must stop caching something first; then nothing has been changed.
    """
    session = mutation.session
    # Ids grow: a larger one than any stored reply's cannot be a repeat, which saves a question for nearly every request.
    if request.request_id <= session.newest:
        stored = _FIND.one_or_none(tx.connection, {"session": session.number, "request_id": request.request_id})
        if stored is not None:
            return _again(tx, state, session, request, _decode(stored.reply))
    nodes = _apply_all(tx, state, mutation, request.operations)
    reply = Applied(list(nodes), touched=list(mutation.inodes))
    # In the transaction of the effect: after a crash a repeat finds both or neither.
    _STORE.run(tx.connection, {"session": session.number, "request_id": request.request_id, "reply": _encode(reply)})
    session.newest = max(session.newest, request.request_id)  # harmless if this is rolled back: it only says where to look
    if session.floor - session.trimmed >= TRIM_STEP:
        # Remembered: by the time the effect runs, more may have been acknowledged, which is not deleted yet.
        floor = session.floor
        tx.execute(_TRIM, {"b_session": session.number, "b_floor": floor})
        tx.after(lambda: _trimmed(session, floor))
    # Once committed and before anybody is answered: answers that were read earlier are not cached any more.
    tx.after(lambda: state.mutations.done(mutation, monotonic_s()))
    if not session.watches:
        return reply
    # Not stored: a repeat would be told of directories as they were then.
    return msgspec.structs.replace(reply, directories=_directories(tx, request.operations))


def apply_operation(tx: Transaction, state: State, mutation: Mutation, operation: Operation) -> Node | None:
    """Applies one operation; see `manager.changes.operations.ApplyOperation`."""
    row = OPERATIONS[type(operation)]
    mutation.recalls = row.recalls
    return row.apply(tx, state, mutation, operation)


def _apply_all(tx: Transaction, state: State, mutation: Mutation, operations: Sequence[Operation]) -> Sequence[Node | None]:
    # A single operation checks before it writes, so that it needs no savepoint to be undone: two statements less.
    if len(operations) == 1:
        return [apply_operation(tx, state, mutation, operations[0])]
    # So do commits, all of them, if no second one depends on a first.
    commits = [operation for operation in operations if isinstance(operation, Commit)]
    if len(commits) == len(operations) == len({commit.ino for commit in commits}):
        return commit_all(tx, state, mutation, commits)
    with tx.savepoint():
        return [apply_operation(tx, state, mutation, operation) for operation in operations]


def _directories(tx: Transaction, operations: list[Operation]) -> list[Node]:
    """The directories in which *operations* have changed names."""
    changed = dict.fromkeys(directory for operation in operations for directory in directories_of(operation))
    return [node_of(row) for directory in changed if (row := find_inode(tx.connection, directory)) is not None]


def _trimmed(session: Session, floor: int) -> None:
    session.trimmed = max(session.trimmed, floor)


def _again(tx: Transaction, state: State, session: Session, request: Apply, reply: Applied) -> Applied:
    """Registers what a repeated request created as open: its session did not know of it, so no `Hello` has presented it."""
    for operation, node in zip(request.operations, reply.nodes, strict=False):
        if OPERATIONS[type(operation)].creates and node is not None and node.home_volume:
            ino = node.ino
            tx.after(lambda ino=ino: state.register_creator(session, ino))  # type: ignore[misc]
    return reply
