"""What one answer of the manager allows this mount to keep, and until when."""

from typing import Protocol


class _InForce(Protocol):
    def is_in_force(self, ino: int, serial: int, asked_s: float) -> bool: ...


class Permit:
    """The grant of one answer, as it is carried along with what the answer said.

    It is asked when something is kept, or handed to the kernel, and not when the answer comes: a recall may be faster.
    """

    __slots__ = ("_caching", "_inodes", "asked_s", "deadline_s", "serial")

    def __init__(self, caching: _InForce, serial: int, inodes: frozenset[int], asked_s: float, deadline_s: float) -> None:
        self._caching = caching
        self._inodes = inodes  # of which something may be kept
        self.serial = serial  # the manager's, by which grants and recalls are ordered
        self.asked_s = asked_s  # what this mount changed later is not in the answer
        self.deadline_s = deadline_s  # counts from before the question was sent

    def until_s(self, ino: int) -> float:
        """When it ends, on trio's clock; 0 if nothing may be kept. To be asked in the step in which the answer is used."""
        return self.deadline_s if ino in self._inodes and self._caching.is_in_force(ino, self.serial, self.asked_s) else 0.0

    def extended(self, until_s: float) -> "Permit":
        """The same, for longer."""
        return Permit(self._caching, self.serial, self._inodes, self.asked_s, until_s)


class _Nothing:
    """A cache in which no grant is in force."""

    def is_in_force(self, _ino: int, _serial: int, _asked_s: float) -> bool:
        return False


NOTHING = Permit(_Nothing(), 0, frozenset(), 0.0, 0.0)
