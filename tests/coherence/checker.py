"""The coherence checker: finds what no order of the operations explains.

What is checked, of a history of calls with their times, and why no right file system can fail it:

- **Names** (`models.Names`, one object). Creating, linking, unlinking and renaming (replacing, exchanging, not replacing) are
  atomic changes of one map from names to inodes. `stat`, `open`, refusals (`ENOENT`, `EEXIST`) and each name of a listing are
  observations of it, and so are link counts: an inode has as many links as there are names for it. What Linux does in
  several steps is several observations, each with the whole time of the call: a path's lookup and the attributes of what it led
  to; the names of a listing, which POSIX lets a change come between. So a listing must have what was there throughout, lack
  what was not, and have nothing twice.
  A link by descriptor that is refused with `ENOENT` says nothing: the kernel counts the names down that are removed on its own
  server, and asks nobody whether another server has added one.
- **Registers**: each cell of each file, each file's size, mode and set time are registers of their own. Ext4 too makes a write
  of many pages visible page by page, so cells that were written together need not be seen together, and the size grows in
  steps. For a cell with parts of several writes it is enough that one of them was there at some time during the read.
  A read that comes to the end of a file which is being cut meanwhile may give zeros for what is not there any more: the
  kernel asks FUSE for pages up to the end that it knows, and fills with zeros what does not come. So may one that comes to
  the end of a file which another server makes longer meanwhile, for what is not there yet: the kernel takes the new
  size over before it drops that page.
  A write that goes through the page cache can be read on its own server before it is done at the home, and there a write of
  another server may still come before it. So what is read of a write that is under way on the same mount, together with one of
  another mount, says nothing about their order (`early`). Where files are passed through, nothing is written to the page cache
  of a mount, and this is not allowed for.
- **Logs** (`appends`).

A mount's own change is made first where all others see it, and a moment later in its own kernel, which changes names and
attributes in several steps (ext4, too: a name that is removed counts no more before it is gone). So what one process sees
without a lock, on a path or of an open file, of what another of the same server is changing may be from any time since that
change began (`_UnderWay`). Once it has returned, or to other servers as soon as one of them has seen it, it is there.

Each of these is linearizable by itself, and so all together are (linearizability is local). What failed with an errno that
says nothing (`EIO`, `ECONNABORTED`, …), or never ended, may have had its effect at any time since it began, or never; all else
must have had it between its beginning and its end, by the one clock that all processes of the machine share.
"""

import errno
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from tests.coherence import models
from tests.coherence.actions import LOGS, TIMED, all_names
from tests.coherence.appends import Finding, check_log
from tests.coherence.records import ABSENT, CELL_BYTES, CELLS, DAMAGED, NEW_MODE, SAYS_NOTHING, ZERO, Operation, overlap
from tests.coherence.search import Model, Step, check

NEVER_STARTED = frozenset({errno.ENOTCONN, errno.ELOOP})
"""What the kernel answers when there is no mount to ask, and what a folder is without one (`load.marked_missing`)."""
CHANGES = frozenset({"create", "link", "unlink", "rename", "write", "truncate", "chmod", "utime", "append"})
LINKS = "links"
SHOWN = 30
FINDINGS_MAX = 10


@dataclass
class Report:
    """`operations`: how many calls were answered; `unknown`: how many changes may or may not have happened. At `FINDINGS_MAX`
    findings the looking ends."""

    operations: int
    unknown: int
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n\n".join(_text(finding) for finding in self.findings[:FINDINGS_MAX])


def _text(finding: Finding) -> str:
    lines = sorted(str(operation) for operation in finding.operations)
    return "\n".join([f"{finding.what}:", *(f"    {line}" for line in lines[-SHOWN:])])


def check_history(operations: Sequence[Operation], workers: int, *, early: bool = True) -> Report:
    """All that is wrong in the calls of *workers* workers and of the one that made the files.

    *early*: whether mounts write through page caches, where what is written can be read before it is done.
    """
    history = [operation for operation in operations if not _never_started(operation)]
    unknown = sum(1 for operation in history if not _answered(operation) and operation.call.kind in CHANGES)
    report = Report(sum(map(_answered, operations)), unknown)
    sorter = _Sorter(workers, early=early)
    for operation in history:
        sorter.add(operation)
    report.findings += sorter.findings
    for label, (model, steps) in sorter.objects():
        if len(report.findings) >= FINDINGS_MAX:
            break
        contradiction = check(model, steps)
        if contradiction is not None:
            what = f"{label}: no order explains what the last of these returned"
            report.findings.append(Finding(what, [*contradiction.core]))
    for operations_of_log in sorter.logs.values():
        report.findings += check_log(operations_of_log)
    return report


def _answered(operation: Operation) -> bool:
    return operation.outcome is not None and operation.outcome.errno not in SAYS_NOTHING


def _never_started(operation: Operation) -> bool:
    return operation.outcome is not None and operation.outcome.errno in NEVER_STARTED


class _Sorter:
    """Puts every call into the objects that it concerns."""

    def __init__(self, workers: int, *, early: bool) -> None:
        names = all_names(workers)
        self._early = early
        self._names = models.Names(names)
        self._in_directory = {directory: [name for name in names if name.startswith(f"{directory}/")] for directory in ("a", "b")}
        self.findings: list[Finding] = []
        self.logs: dict[int, list[Operation]] = defaultdict(list)
        self._names_steps: list[Step] = []
        self._registers: dict[tuple[str, int, int], list[Step]] = defaultdict(list)
        self._cuts: dict[int, list[Operation]] = defaultdict(list)
        self._growths: dict[int, list[Operation]] = defaultdict(list)
        self._written: dict[int, Operation] = {}
        self._under_way = _UnderWay()
        self._looks: list[tuple[Hashable, list[Step], Step]] = []

    def objects(self) -> Iterator[tuple[str, tuple[Model, list[Step]]]]:
        """Each with its steps, and what to call it."""
        for thing, steps, look in self._looks:
            steps.append(replace(look, invoked_ns=self._under_way.since(thing, look.operation)))
        yield "names", (self._names, self._names_steps)
        initial = {"cell": ABSENT, "size": 0, "mode": NEW_MODE, "time": None}
        for (kind, ino, number), steps in self._registers.items():
            label = f"cell {number} of inode {ino}" if kind == "cell" else f"{kind} of inode {ino}"
            if kind == "size":
                steps = [step for step in steps if not (step.observes and self._is_half_written(ino, step))]
            if kind == "cell" and self._early:
                steps = [step for step in steps if not (step.observes and self._is_early(ino, step))]
            if kind == "cell":
                steps = [self._perhaps_an_end(ino, number, step) for step in steps]
            yield label, (models.Register(initial[kind]), steps)

    def _is_half_written(self, ino: int, seen: Step) -> bool:
        """Whether the size is one that a write of several pages may have made on its way to another."""
        (size,) = cast(tuple[int], seen.what[1])
        return any(
            write.call.first * CELL_BYTES < size < (write.call.first + write.call.count) * CELL_BYTES
            and overlap(write, seen.operation)
            for write in self._growths[ino]
        )

    def _is_early(self, ino: int, seen: Step) -> bool:
        """Whether what was read may have been only in the reader's own page cache, in no order yet with another mount's write."""
        reader = seen.operation
        for value in cast(tuple[int, ...], seen.what[1]):
            write = self._written.get(value)
            if write is not None and write.mount == reader.mount and overlap(write, reader):
                return any(other.mount != write.mount and overlap(other, write) for other in self._growths[ino])
        return False

    def _perhaps_an_end(self, ino: int, number: int, step: Step) -> Step:
        """A hole that was seen while the file was being cut there, or made longer by another server, may have been its end."""
        if not step.observes or ZERO not in cast(tuple[int, ...], step.what[1]):
            return step
        seen = step.operation
        ends = [cut for cut in self._cuts[ino] if cut.call.count <= number]
        ends += [write for write in self._growths[ino] if write.mount != seen.mount and write.call.first <= number]
        if not any(overlap(end, seen) for end in ends):
            return step
        return replace(step, what=("in", (*cast(tuple[int, ...], step.what[1]), ABSENT)))

    def add(self, operation: Operation) -> None:
        getattr(self, f"_{operation.call.kind}")(operation)

    # ----------------------------------------------------------------------------------------------------- names

    def _observe_names(self, operation: Operation, *what: object, keys: Iterable[int] | None) -> None:
        self._names_steps.append(_step(operation, what, observes=True, keys=keys))

    def _resolved(self, operation: Operation) -> bool:
        """A path led to an inode, or nowhere; whether to one."""
        outcome = operation.outcome
        number = self._names.number[operation.call.name]
        if outcome is None or outcome.errno not in (0, errno.ENOENT):
            self._unexpected(operation)
            return False
        look = _step(operation, ("is", number, outcome.ino or None), observes=True, keys=(number,))
        self._looks.append((number, self._names_steps, look))
        return outcome.errno == 0

    def _unexpected(self, operation: Operation) -> None:
        outcome = operation.outcome
        if outcome is not None and outcome.errno not in SAYS_NOTHING:
            self.findings.append(Finding(f"an error that nothing explains ({errno.errorcode[outcome.errno]})", [operation]))

    def _change_names(self, operation: Operation, what: models.What, keys: Iterable[int] | None) -> None:
        outcome = operation.outcome
        if outcome is None or outcome.errno == 0 or outcome.errno in SAYS_NOTHING:
            self._names_steps.append(_step(operation, what, observes=False, keys=keys))
            self._under_way.add(operation, LINKS, *(self._names.number[name] for name in _names(operation)))
            return
        if operation.call.kind == "link" and outcome.errno == errno.ENOENT:
            return
        seen = models.refusal(operation.call.kind, outcome.errno, what)
        if seen is None:
            self._unexpected(operation)
        else:
            self._observe_names(operation, *seen, keys=keys)

    def _create(self, operation: Operation) -> None:
        number = self._names.number[operation.call.name]
        outcome = operation.outcome
        ino = outcome.ino if outcome is not None and outcome.ino else models.ANY
        self._change_names(operation, ("create", number, ino), (number,))

    def _link(self, operation: Operation) -> None:
        self._change_names(operation, ("link", operation.call.ino, self._names.number[operation.call.target]), None)

    def _unlink(self, operation: Operation) -> None:
        number = self._names.number[operation.call.name]
        self._change_names(operation, ("unlink", number), (number,))

    def _rename(self, operation: Operation) -> None:
        call = operation.call
        old, new = self._names.number[call.name], self._names.number[call.target]
        self._change_names(operation, ("rename", old, new, call.value), (old, new))

    def _list(self, operation: Operation) -> None:
        if not self._succeeded(operation):
            return
        assert operation.outcome is not None
        entries = operation.outcome.entries
        found = dict(entries)
        names = self._in_directory[operation.call.name]
        if len(found) < len(entries):
            self.findings.append(Finding("a name is twice in one listing", [operation]))
        if not found.keys() <= set(names):
            self.findings.append(Finding("a listing has a name that nobody made", [operation]))
        for name in names:
            number = self._names.number[name]
            self._observe_names(operation, "is", number, found.get(name), keys=(number,))

    # ----------------------------------------------------------------------------------------------- attributes

    def _succeeded(self, operation: Operation) -> bool:
        """Of a call that only fails if something is wrong with the file system."""
        if operation.outcome is None or operation.outcome.errno:
            self._unexpected(operation)
            return False
        return True

    def _observe(self, operation: Operation, kind: str, ino: int, number: int, values: Iterable[int]) -> None:
        steps = self._registers[kind, ino, number]
        steps.append(_step(operation, ("in", tuple(values)), observes=True))

    def _look(self, operation: Operation, kind: str, ino: int, value: int) -> None:
        look = _step(operation, ("in", (value,)), observes=True)
        self._looks.append(((kind, ino), self._registers[kind, ino, 0], look))

    def _change(self, operation: Operation, kind: str, ino: int, number: int, what: tuple[str, int]) -> None:
        self._registers[kind, ino, number].append(_step(operation, what, observes=False))

    def _stat(self, operation: Operation) -> None:
        if self._resolved(operation):
            assert operation.outcome is not None
            self._attributes(operation, operation.outcome.ino)

    def _fstat(self, operation: Operation) -> None:
        if self._succeeded(operation):
            self._attributes(operation, operation.call.ino)

    def _attributes(self, operation: Operation, ino: int) -> None:
        assert operation.outcome is not None
        found = operation.outcome.attributes
        assert found is not None
        self._looks.append((LINKS, self._names_steps, _step(operation, ("links", ino, found.nlink), observes=True)))
        self._look(operation, "mode", ino, found.mode)
        if operation.call.name in TIMED:
            self._look(operation, "time", ino, found.mtime_ns)
        if operation.call.name in LOGS:
            self.logs[ino].append(operation)
        else:
            self._observe(operation, "size", ino, 0, [found.size])

    def _chmod(self, operation: Operation) -> None:
        self._set(operation, "mode")

    def _utime(self, operation: Operation) -> None:
        self._set(operation, "time")

    def _set(self, operation: Operation, kind: str) -> None:
        if self._is_change(operation):
            self._change(operation, kind, operation.call.ino, 0, ("set", operation.call.value))
            self._under_way.add(operation, (kind, operation.call.ino))

    # -------------------------------------------------------------------------------------------------- content

    def _is_change(self, operation: Operation) -> bool:
        """Whether it may have happened."""
        outcome = operation.outcome
        if outcome is None or outcome.errno == 0 or outcome.errno in SAYS_NOTHING:
            return True
        self._unexpected(operation)
        return False

    def _write(self, operation: Operation) -> None:
        if not self._is_change(operation):
            return
        call = operation.call
        end = call.first + call.count
        self._growths[call.ino].append(operation)
        self._written[call.value] = operation
        self._change(operation, "size", call.ino, 0, ("reach", end * CELL_BYTES))
        for number in range(end):
            what = ("set", call.value) if number >= call.first else ("reach", ZERO)
            self._change(operation, "cell", call.ino, number, what)

    def _truncate(self, operation: Operation) -> None:
        if not self._is_change(operation):
            return
        call = operation.call
        self._cuts[call.ino].append(operation)
        self._change(operation, "size", call.ino, 0, ("set", call.count * CELL_BYTES))
        for number in range(CELLS):
            what = ("reach", ZERO) if number < call.count else ("set", ABSENT)
            self._change(operation, "cell", call.ino, number, what)

    def _open(self, operation: Operation) -> None:
        self._resolved(operation)

    def _read(self, operation: Operation) -> None:
        if self._succeeded(operation):
            self._cells(operation, operation.call.ino)

    def _readmapped(self, operation: Operation) -> None:
        if self._resolved(operation):
            assert operation.outcome is not None
            self._cells(operation, operation.outcome.ino)

    def _cells(self, operation: Operation, ino: int) -> None:
        assert operation.outcome is not None
        for number, values in enumerate(operation.outcome.cells, operation.call.first):
            if DAMAGED in values:
                self.findings.append(Finding(f"cell {number} of inode {ino} has bytes that nobody wrote", [operation]))
            else:
                self._observe(operation, "cell", ino, number, values)

    def _append(self, operation: Operation) -> None:
        if self._is_change(operation):
            self.logs[operation.call.ino].append(operation)

    def _readlog(self, operation: Operation) -> None:
        if self._succeeded(operation):
            self.logs[operation.call.ino].append(operation)


class _UnderWay:
    """What the workers of each mount were changing, and when."""

    def __init__(self) -> None:
        self._changes: dict[str, dict[int, list[tuple[Operation, frozenset[Hashable]]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, operation: Operation, *things: Hashable) -> None:
        """The changes of one worker come in their order."""
        self._changes[operation.mount][operation.worker].append((operation, frozenset(things)))

    def since(self, thing: Hashable, observer: Operation) -> int:
        """Since when another worker of the mount had been changing *thing* when an operation that was answered began, or while
        it went on; else when it began."""
        assert observer.outcome is not None
        earliest_ns = observer.call.at_ns
        for worker, changes in self._changes[observer.mount].items():
            begun = bisect_right(changes, observer.outcome.at_ns, key=lambda change: change[0].call.at_ns)
            for operation, things in reversed(changes[:begun] if worker != observer.worker else []):
                if operation.outcome is not None and operation.outcome.at_ns < observer.call.at_ns:
                    break
                if thing in things:
                    earliest_ns = min(earliest_ns, operation.call.at_ns)
        return earliest_ns


def _names(operation: Operation) -> list[str]:
    """The names that a change is about."""
    call = operation.call
    if call.kind == "link":
        return [call.target]
    return [call.name, call.target] if call.kind == "rename" else [call.name]


def _step(operation: Operation, what: tuple[object, ...], *, observes: bool, keys: Iterable[int] | None = None) -> Step:
    outcome = operation.outcome
    known = outcome is not None and outcome.errno not in SAYS_NOTHING
    returned_ns = outcome.at_ns if outcome is not None and known else None
    keyed = None if keys is None else frozenset(keys)
    return Step(operation, what, operation.call.at_ns, returned_ns, observes, keyed)
