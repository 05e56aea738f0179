"""Delegated opens without the extension: a model of it in Python, and delegations that work with it."""

import itertools
from collections.abc import Callable
from typing import cast

from cluster.messages import Node
from fusefs.caching.cache import Caching
from fusefs.content.delegations import Delegations
from fusefs.content.passthrough import Passthrough
from fusefs.kernel.stream import Channel, Delegation, OpenFlag

FIRST = 1 << 62
"""The number of the first handle; the next ones follow it."""


class Model:
    """What `delegations.c` does, said in Python, with the channel's methods. *inodes_max* and *opens_max*: at a time."""

    granted = 0

    def __init__(self, inodes_max: int = 1000, opens_max: int = 4000) -> None:
        self._inodes_max = inodes_max
        self._opens_max = opens_max
        self._answers: dict[int, Delegation] = {}
        self._opens: dict[int, int] = {}  # inodes by handles
        self._used: set[int] = set()
        self._numbers = itertools.count(FIRST)
        self.opened = 0
        self.closed_backings: list[int] = []
        self.passes = True  # files are passed through

    # What the channel has besides.

    def open_backing(self, descriptor: int, _volume: int) -> int:
        return descriptor + 1000 if self.passes else 0

    def close_backing(self, backing_id: int) -> None:
        self.closed_backings.append(backing_id)

    # What the extension does for Python.

    def delegate(self, ino: int, answer: Delegation) -> bool:
        if ino not in self._answers and len(self._answers) == self._inodes_max:
            return False
        self._answers[ino] = answer
        return True

    def suspend(self, ino: int) -> None:
        if ino in self._answers:
            self._answers[ino] = self._answers[ino]._replace(until_ns=0)

    def take_back(self, ino: int) -> list[int]:
        handles = [number for number, of in self._opens.items() if of == ino]
        for number in handles:
            del self._opens[number]
        self._answers.pop(ino, None)
        self._used.discard(ino)
        return sorted(handles, reverse=True)

    def delegated_inode(self, handle: int) -> int:
        return self._opens.get(handle, 0)

    def used_inodes(self) -> list[int]:
        used, self._used = self._used | set(self._opens.values()), set()
        return sorted(used)

    # What the kernel asks it.

    def open(
        self, ino: int, now_ns: int = 0, *, is_unchanged: bool = True, reads: bool = True
    ) -> tuple[int, OpenFlag, int] | None:
        """The handle, its flags and its backing id; None if that is Python's. *reads*: no flag asks for more."""
        answer = self._answers.get(ino)
        if answer is None or not reads or now_ns >= answer.until_ns:
            return None
        if not is_unchanged and answer.descriptor >= 0:
            self.suspend(ino)
            return None
        if len(self._opens) == self._opens_max:
            return None
        number = next(self._numbers)
        self._opens[number] = ino
        self._used.add(ino)
        self.opened += 1
        return number, answer.flags, answer.backing_id

    def undo(self, handle: int) -> None:
        """The kernel did not take the answer."""
        del self._opens[handle]

    def knows(self, ino: int) -> bool:
        """Whether it is delegated."""
        return ino in self._answers

    def is_unchanged(self, ino: int) -> bool:
        """Whether its object is as the answer says, where a descriptor says the size."""
        answer = self._answers.get(ino)
        return answer is not None and answer.descriptor == answer.size

    def release(self, handle: int) -> bool:
        """False: that is Python's."""
        ino = self._opens.pop(handle, 0)
        if ino:
            self._used.add(ino)
        return ino != 0


def delegations(
    caching: Caching,
    model: Model | None = None,
    *,
    is_sound: Callable[[], bool] = lambda: True,
    use: Callable[[int], None] = lambda _ino: None,
    has_pages: Callable[[Node], bool] = lambda _node: False,
) -> Delegations:
    """Delegations to *model*; without one, nothing is ever delegated."""
    channel = Channel(None) if model is None else cast(Channel, model)
    ways = Passthrough(channel, has_fence=lambda _path: True)
    return Delegations(channel, ways, caching, lambda _volume: is_sound(), use, has_pages)
