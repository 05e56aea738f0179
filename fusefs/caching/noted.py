"""What is remembered of the inodes that were noted last; bounded."""

from collections import OrderedDict

NOTED_MAX = 10_000


class Noted:
    """A number for each inode, such as seconds on trio's clock."""

    def __init__(self, limit: int = NOTED_MAX) -> None:
        self._limit = limit
        self._numbers: OrderedDict[int, float] = OrderedDict()  # in the order in which they were noted

    def note(self, ino: int, number: float) -> None:
        """The number of *ino* is this one from now on. What was noted longest ago may be forgotten for it."""
        self._numbers.pop(ino, None)
        self._numbers[ino] = number
        if len(self._numbers) > self._limit:
            self._numbers.popitem(last=False)

    def get(self, ino: int) -> float:
        """What was noted last; below all numbers if that is not known."""
        return self._numbers.get(ino, float("-inf"))


class Repeats:
    """Which inodes something happens to a second time within *within_s*: more of it is to be expected then."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._last_s = Noted()  # when it happened last
        self._not_before_s = Noted()  # until when it does not count

    def again(self, ino: int, now: float) -> bool:
        """It happens now: whether that is the second time, and counts."""
        last_s = self._last_s.get(ino)
        self._last_s.note(ino, now)
        return last_s >= now - self._within_s and self._not_before_s.get(ino) <= now

    def wait(self, ino: int, until_s: float) -> None:
        """It does not count until then."""
        self._not_before_s.note(ino, until_s)
