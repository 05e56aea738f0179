"""Keeps the kernel from joining two listings of a directory into one.

The kernel puts the entries of every reply to READDIR into the cache of the directory, whichever handle it was for, if they begin
at the position where those in it end. The empty reply at the end of a listing, at that position, makes the cache whole, and from
then on it is what everybody reads who has the directory open (Linux, `fs/fuse/readdir.c`). It does not ask whether a reply is
older than what it was told meanwhile. So:

- Positions carry a *mark* that is another one for each listing that was fetched: entries of two listings never join.
- A handle is told the end of a listing that is not good any more only after the kernel has dropped what it has of the directory:
  without its first page a cache is thrown away by the first who reads it. Nobody else can come to that end: see above.
- A handle keeps what the kernel has only while the listing that it was told last is good (`fusefs.names.directories`), and a
  recall drops it again when the replies before have been taken in (`fusefs.caching.recalls`).
"""

import itertools
from collections.abc import Container

MARKS = 127  # a directory with as many listings under way at a time gets no more marks
COOKIE_BITS = 55  # with 7 for the mark and one that says that there is a mark, 63
COOKIE_MAX = (1 << COOKIE_BITS) - 1
_MARKED = 1 << 62  # of 63 bits: a position is a signed number, and not negative


class Marks:
    """Gives marks out in turn."""

    def __init__(self) -> None:
        self._marks = itertools.cycle(range(1, MARKS + 1))

    def another(self, taken: Container[int]) -> int:
        """One that is not *taken*, or 0 if there is none: such a listing is not for keeping."""
        return next((mark for mark in itertools.islice(self._marks, MARKS) if mark not in taken), 0)


def position(cookie: int, mark: int) -> int:
    """Where an entry ends, as the kernel is told; a cookie beyond `COOKIE_MAX` has no room for a mark."""
    return cookie if cookie > COOKIE_MAX else _MARKED | mark << COOKIE_BITS | cookie


def cookie_of(position: int) -> int:
    """The cookie at a position, whatever its mark."""
    return position & COOKIE_MAX if position & _MARKED else position
