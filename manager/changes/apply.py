"""Mutations, applied once: the reply is stored in the transaction of the effect, and a repeat finds it there."""

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select

from cluster.clock import monotonic_s
from cluster.messages import (
    Applied,
    Apply,
    Commit,
    Create,
    CreateUnnamed,
    Link,
    Node,
    Operation,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Unlink,
)
from manager.catalog.hot import Hot
from manager.catalog.inodes import find_inode, node_of
from manager.catalog.schema import applied
from manager.catalog.store import Transaction
from manager.changes.attributes import CAPABILITY_XATTR, remove_xattr, set_attr, set_xattr
from manager.changes.content import commit
from manager.changes.namespace import create, create_unnamed, link, rename, rmdir, unlink
from manager.memory.mutations import Mutation, directories_of
from manager.memory.sessions import Session
from manager.memory.state import State

OPERATIONS_MAX = 1000
TRIM_STEP = 64  # acknowledged replies are deleted when so many have come together

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Applied).decode

_FIND = Hot(
    select(applied.c.reply).where(applied.c.session == bindparam("session"), applied.c.request_id == bindparam("request_id"))
)
_STORE = Hot(insert(applied))
_TRIM = delete(applied).where(applied.c.session == bindparam("b_session"), applied.c.request_id < bindparam("b_floor"))
_NEWEST = select(func.max(applied.c.request_id)).where(applied.c.session == bindparam("session"))

_OPERATIONS: dict[type, Callable[[Transaction, State, Mutation, Any], Node | None]] = {
    Create: create,
    CreateUnnamed: create_unnamed,
    Link: link,
    Unlink: unlink,
    Rmdir: rmdir,
    Rename: rename,
    SetAttr: set_attr,
    SetXattr: set_xattr,
    RemoveXattr: remove_xattr,
    Commit: commit,
}


def newest_reply(tx: Transaction, session: int) -> int:
    """The largest id of a stored reply of the session, 0 if there is none."""
    return tx.execute(_NEWEST, {"session": session}).scalar_one() or 0


def changed_for_opens(operations: list[Operation]) -> list[int]:
    """The inodes whose dirty flag may be cleared, or that may get a capability: see `State.changing`."""
    return [op.ino for op in operations if isinstance(op, Commit) or (isinstance(op, SetXattr) and op.name == CAPABILITY_XATTR)]


def apply_operations(tx: Transaction, state: State, mutation: Mutation, request: Apply) -> Applied:
    """All operations in order or none; or the stored reply, if they have been applied before.

    Raises `HeldElsewhere` if others must stop caching something first; then nothing has been changed.
    """
    session = mutation.session
    if request.request_id <= session.newest:
        stored = _FIND.one_or_none(tx.connection, {"session": session.number, "request_id": request.request_id})
        if stored is not None:
            return _again(tx, state, session, request, _decode(stored.reply))
    if len(request.operations) == 1:
        operation = request.operations[0]
        nodes = [_OPERATIONS[type(operation)](tx, state, mutation, operation)]
    else:
        with tx.savepoint():
            nodes = [_OPERATIONS[type(op)](tx, state, mutation, op) for op in request.operations]
    reply = Applied(nodes, touched=list(mutation.inodes))
    _STORE.run(tx.connection, {"session": session.number, "request_id": request.request_id, "reply": _encode(reply)})
    session.newest = max(session.newest, request.request_id)  # harmless if this is rolled back: it only says where to look
    if session.floor - session.trimmed >= TRIM_STEP:
        floor = session.floor
        tx.execute(_TRIM, {"b_session": session.number, "b_floor": floor})
        tx.after(lambda: _trimmed(session, floor))
    tx.after(lambda: state.fences.done(mutation, monotonic_s()))
    if not session.watches:
        return reply
    return msgspec.structs.replace(reply, directories=_directories(tx, request.operations))


def _directories(tx: Transaction, operations: list[Operation]) -> list[Node]:
    """The directories in which *operations* have changed names."""
    changed = dict.fromkeys(directory for operation in operations for directory in directories_of(operation))
    return [node_of(row) for directory in changed if (row := find_inode(tx.connection, directory)) is not None]


def _trimmed(session: Session, floor: int) -> None:
    session.trimmed = max(session.trimmed, floor)


def _again(tx: Transaction, state: State, session: Session, request: Apply, reply: Applied) -> Applied:
    """A repeat: the session does not know yet what it created, so a `Hello` since then has not presented it as open."""
    for operation, node in zip(request.operations, reply.nodes, strict=False):
        if isinstance(operation, (Create, CreateUnnamed)) and node is not None and node.home_volume:
            ino = node.ino
            tx.after(lambda ino=ino: state.register_creator(session, ino))  # type: ignore[misc]
    return reply
