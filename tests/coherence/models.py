"""The sequential models: what one process alone would see of a register, and of a tree of names."""

import errno
from collections.abc import Hashable, Iterable, Sequence
from typing import cast

from tests.coherence.search import State
from tests.support.acting import RENAME_EXCHANGE, RENAME_NOREPLACE

What = tuple[Hashable, ...]

ANY = -1
"""In the place of a value that is not known: an inode number of a file whose making has not been answered, say."""


class Register:
    """A number: a cell of a file, its size, its mode, its time.

    Changes: `("set", number)` and `("reach", number)`, which raises it to at least that: a write beyond the end makes a longer
    file, and what was absent in between a hole. Observation: `("in", numbers)`. A state of None: anything.
    """

    def __init__(self, initial: int | None) -> None:
        self._initial = initial

    def initial(self) -> State:
        return self._initial

    def explains(self, state: State, what: What) -> bool:
        return state is None or state in cast(tuple[int, ...], what[1])

    def results(self, state: State, what: What, _marks: Iterable[Hashable]) -> Iterable[State]:
        kind, number = what
        if kind == "set" or state is None:
            return (number,)
        return (max(cast(int, state), cast(int, number)),)

    def mark(self, _state: State, _what: What) -> Hashable:
        return None


Tree = tuple[int | None, ...]


class Names:
    """All names, each with its inode number or None. A state is a tuple in the order of *names*.

    Observations: `("is", name, ino)`, `("present", name)`, `("lacks", name, name)` (one of them), `("links", ino, count)`.
    Changes: `("create", name, ino)`, `("link", ino, name)`, `("unlink", name)`, `("rename", name, name, flags)`. Names are
    numbers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.number = {name: number for number, name in enumerate(names)}

    def initial(self) -> State:
        return (None,) * len(self.number)

    def explains(self, state: State, what: What) -> bool:
        tree = cast(Tree, state)
        match what:
            case ("is", int(name), ino):
                return tree[name] == ino or (ino is not None and tree[name] == ANY)
            case ("present", int(name)):
                return tree[name] is not None
            case ("lacks", int(one), int(other)):
                return tree[one] is None or tree[other] is None
            case ("links", int(ino), int(count)):
                known = tree.count(ino)
                return known <= count <= known + tree.count(ANY)
        raise AssertionError(what)

    def results(self, state: State, what: What, marks: Iterable[Hashable]) -> Iterable[State]:
        tree = cast(Tree, state)
        match what:
            case ("create", int(name), int(ino)):
                return [_with(tree, {name: ino})] if tree[name] is None else []
            case ("link", int(ino), int(name)):
                exists = ino in tree or ANY in tree
                return [_with(tree, {name: ino})] if tree[name] is None and exists else []
            case ("unlink", int(name)):
                return [_with(tree, {name: None})] if tree[name] is not None else []
            case ("rename", int(name), int(target), int(flags)):
                return self._renamed(tree, name, target, flags, marks)
        raise AssertionError(what)

    def _renamed(self, tree: Tree, name: int, target: int, flags: int, marks: Iterable[Hashable]) -> list[State]:
        old, new = tree[name], tree[target]
        results: list[State] = []
        same = old is not None and old == new
        if flags != RENAME_NOREPLACE and (same or (new is not None and new in marks)):
            results.append(tree)
        if old is None or (same and old != ANY):
            return results
        if flags == RENAME_EXCHANGE:
            return results if new is None else [*results, _with(tree, {name: new, target: old})]
        if flags == RENAME_NOREPLACE and new is not None:
            return results
        return [*results, _with(tree, {name: None, target: old})]

    def mark(self, state: State, what: What) -> Hashable:
        """What a rename has found under the old name.

        The kernel looks both names up, one after the other, and does nothing if they lead to the same inode. So a rename succeeds
        without an effect, too, if the inode was first seen under the old name and then under the new one.
        """
        if what[0] != "rename" or what[3] == RENAME_NOREPLACE:
            return None
        found = cast(Tree, state)[cast(int, what[1])]
        return None if found == ANY else found


def _with(tree: Tree, changes: dict[int, int | None]) -> Tree:
    return tuple(changes.get(number, ino) for number, ino in enumerate(tree))


def refusal(kind: str, code: int, what: What) -> What | None:
    """What is observed by a change of names that was refused with *code*; None if that says nothing of the names.

    *what* is the change.
    """
    if kind == "create" and code == errno.EEXIST:
        return ("present", what[1])
    if kind == "link" and code == errno.EEXIST:
        return ("present", what[2])
    if kind == "unlink" and code == errno.ENOENT:
        return ("is", what[1], None)
    if kind == "rename" and code == errno.ENOENT:
        return ("lacks", what[1], what[2]) if what[3] == RENAME_EXCHANGE else ("is", what[1], None)
    if kind == "rename" and code == errno.EEXIST and what[3] == RENAME_NOREPLACE:
        return ("present", what[2])
    return None
