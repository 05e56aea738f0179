"""Short sequences of changes as CrashMonkey's ACE makes them (OSDI '18), and what a file system is after each: pure.

Bounded as there: few names, all sequences of up to so many changes of them that a file system allows, each followed by every
kind of `fsync` or none. Every beginning of a sequence is one itself, so that a crash at the end of each is one after each step.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

FIXED = ("A", "B")  # directories that stay
PATHS = ("A/d", "A/n", "A/x", "B/n", "B/x")
DEEPER = (*PATHS, "A/d/n", "A/n/n")  # `A/n` may come to be a directory


class State(NamedTuple):
    """A small file system: a value, which nobody changes."""

    names: Mapping[str, int]  # inodes by path
    directories: frozenset[int]  # those of the inodes that are some
    newest: int  # the inode that was made last

    def is_directory(self, path: str) -> bool:
        return self.names.get(path) in self.directories

    def is_file(self, path: str) -> bool:
        return path in self.names and not self.is_directory(path)

    def is_empty(self, path: str) -> bool:
        return not any(name.startswith(f"{path}/") for name in self.names)

    def links(self, ino: int) -> int:
        return sum(other == ino for other in self.names.values())


FIRST = State({"A": 1, "B": 2, "A/d": 3, "A/x": 4, "B/x": 5}, frozenset({1, 2, 3}), 5)
FILES = (4, 5)  # those that are there first, with content that is durable


class Kind(StrEnum):
    CREATE = "create"
    MKDIR = "mkdir"
    LINK = "link"
    RENAME = "rename"
    UNLINK = "unlink"
    RMDIR = "rmdir"
    WRITE = "write"


class Change(NamedTuple):
    """One operation of a program, on paths."""

    kind: Kind
    path: str
    to: str = ""  # of a link or a rename

    def __str__(self) -> str:
        return " ".join(part for part in self if part)


class Then(StrEnum):
    """What follows a change."""

    NOTHING = ""
    SENT = "sent"  # so much time that the manager has it; no program asked for that
    DIRECTORY = "fsync of the directory"
    FILE = "fsync of the file"  # that was changed last
    FIRST_FILE = "fsync of the first file"  # that was changed, which is another one


SYNCS = (Then.DIRECTORY, Then.FILE, Then.FIRST_FILE)


class Step(NamedTuple):
    change: Change
    then: Then

    def __str__(self) -> str:
        return f"{self.change}, {self.then}" if self.then else str(self.change)


Sequence = tuple[Step, ...]


def text_of(sequence: Sequence) -> str:
    """The sequence for people."""
    return "; ".join(map(str, sequence))


def after(state: State, change: Change) -> State:
    """What a file system is after a change that it allows."""
    names, directories, newest = dict(state.names), state.directories, state.newest
    path, to = change.path, change.to
    match change.kind:
        case Kind.CREATE | Kind.MKDIR:
            newest += 1
            names[path] = newest
            if change.kind is Kind.MKDIR:
                directories |= {newest}
        case Kind.LINK:
            names[to] = names[path]
        case Kind.RENAME if names[path] != names.get(to):  # else both names stay
            moved = {name: ino for name, ino in names.items() if name == path or name.startswith(f"{path}/")}
            names = {name: ino for name, ino in names.items() if name not in moved}
            names |= {to + name.removeprefix(path): ino for name, ino in moved.items()}
        case Kind.UNLINK | Kind.RMDIR:
            del names[path]
    return State(names, directories, newest)


def allowed(state: State, change: Change) -> bool:
    """Whether a file system makes the change, by POSIX."""
    path, to = change.path, change.to
    there = path in state.names
    match change.kind:
        case Kind.CREATE | Kind.MKDIR:
            return not there and _takes(state, path)
        case Kind.LINK:
            return state.is_file(path) and to not in state.names and _takes(state, to)
        case Kind.RENAME:
            return there and path != to and _takes(state, to) and _may_replace(state, path, to)
        case Kind.UNLINK | Kind.WRITE:
            return state.is_file(path)
        case Kind.RMDIR:
            return state.is_directory(path) and state.is_empty(path)


def _takes(state: State, path: str) -> bool:
    return state.is_directory(path.rpartition("/")[0])


def _may_replace(state: State, path: str, to: str) -> bool:
    if state.is_directory(path):
        return not to.startswith(f"{path}/") and (to not in state.names or (state.is_directory(to) and state.is_empty(to)))
    return not state.is_directory(to)


def changes(state: State, paths: tuple[str, ...] = PATHS) -> Iterator[Change]:
    """All changes of these paths that there can be."""
    single = (Kind.CREATE, Kind.MKDIR, Kind.UNLINK, Kind.RMDIR, Kind.WRITE)
    every = [Change(kind, path) for kind in single for path in paths]
    every += [Change(kind, *pair) for kind in (Kind.LINK, Kind.RENAME) for pair in itertools.permutations(paths, 2)]
    return (change for change in every if allowed(state, change))


def file_of(state: State, change: Change) -> int:
    """The file that a change of *state* is about, which a program has open; 0 for a directory."""
    following = after(state, change)
    ino = state.names.get(change.path) or following.names[change.path]
    return 0 if ino in following.directories else ino


def files_of(sequence: Sequence) -> list[int]:
    """The file of each step, or 0."""
    found, state = [], FIRST
    for step in sequence:
        found.append(file_of(state, step.change))
        state = after(state, step.change)
    return found


def states_of(sequence: Sequence) -> list[State]:
    """The file system before all, and after each step."""
    return list(itertools.accumulate((step.change for step in sequence), after, initial=FIRST))


def _follows(sequence: Sequence, change: Change, state: State) -> Iterator[Then]:
    yield from (Then.NOTHING, Then.DIRECTORY)
    file = file_of(state, change)
    if file:
        yield Then.FILE
    first = next((ino for ino in files_of(sequence) if ino), 0)
    if first not in (0, file):
        yield Then.FIRST_FILE


def sequences(length: int, paths: tuple[str, ...] = PATHS, before: Sequence = (), state: State = FIRST) -> Iterator[Sequence]:
    """All sequences of just so many steps."""
    if not length:
        yield before
        return
    for change in changes(state, paths):
        following = after(state, change)
        # What was sent says nothing more when it is the end.
        for then in (*_follows(before, change, state), *[Then.SENT] * (length > 1)):
            yield from sequences(length - 1, paths, (*before, Step(change, then)), following)


def random_sequence(draw: random.Random, length: int) -> Sequence:
    """A longer one, of which every step is as likely as any other."""
    sequence: Sequence = ()
    state = FIRST
    for _ in range(length):
        kinds: dict[Kind, list[Change]] = {}
        for change in changes(state, DEEPER):
            kinds.setdefault(change.kind, []).append(change)
        change = draw.choice(kinds[draw.choice(sorted(kinds))])
        then = draw.choice([Then.NOTHING, Then.NOTHING, Then.SENT, *_follows(sequence, change, state)])
        sequence = (*sequence, Step(change, then))
        state = after(state, change)
    return sequence
