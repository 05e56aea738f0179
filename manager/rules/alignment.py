"""What is to become of one file now: its home, its moves, and the tasks of its copies. Pure.

The decision is made anew from everything that is known of the file whenever something about it has changed, and does not depend
on earlier ones: what is queued and no longer wanted is taken back. What an agent may be working on cannot be changed under it;
it is put right when its report arrives. `manager.changes.alignment` reads the values and carries the decision out, in one
transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple, Protocol

from cluster.messages import MoveState, TaskOperation, TaskState
from manager.rules.moves import NOT_COMMITTED, Event, Move, Step, choose_home, decide, look_at_target
from manager.rules.placement import Action, Copy, Drop, Holding, Layout, Place, first_places, lay_out, why_short


class File(NamedTuple):
    """A regular file that has content and a name."""

    ino: int  # only for the draw among volumes and for texts
    size: int  # bytes that a copy needs
    version: int  # the newest that was committed
    dirty: bool  # somebody may be writing it, or what was written is not committed
    home: int  # volume
    copies: int  # that its policy wants, the home's among them


class Replica(NamedTuple):
    """An object of the file on a volume."""

    volume: int  # that has the object
    version: int  # of the object's content; current if it is the file's
    size: int  # bytes that a copy of its content needs; 0 if it has none
    committed: bool  # its content is a version, and its stamp is known, by which later changes of the object are noticed
    faulty: bool  # its content was found damaged


class Queued(NamedTuple):
    """The task of the file for a volume: there is at most one."""

    volume: int  # where it makes or deletes an object
    operation: str  # of `TaskOperation`
    state: str  # of `TaskState`
    version: int  # the newest that it is for
    given: bool  # an agent was given it at some time: whatever became of that claim, it may be done at any moment


class Use(Protocol):
    """Who uses the file at present. Asked only when the home is to move."""

    @property
    def may_move_home(self) -> bool:
        """Whether nobody can be writing it."""

    def is_open_at(self, volume: int) -> bool:
        """Whether the mount of the volume's server has it open: its kernel may be reading the object of a home itself."""

    @property
    def cached(self) -> bool:
        """Whether any mount may be caching it."""


@dataclass(frozen=True)
class View:
    """What is known of the file."""

    file: File  # as the catalog has it now
    replicas: Mapping[int, Replica]  # by volume
    queued: Mapping[int, Queued]  # by volume
    moves: Sequence[Move]  # active ones
    places: Mapping[int, Place]  # by volume; of all servers that have not left
    left_alone: Collection[int]  # volumes with an object that may hold what nobody else has: it is no replica
    lost: Collection[int]  # volumes that were declared lost, of those with a replica
    use: Use  # asked late, since it costs look-ups


class Switch(Enum):
    """How the home changes."""

    MOVED = auto()
    """To a current replica. The old home's object stays a replica."""
    FELL_BACK = auto()
    """To the newest replica that is left: see `abandons`."""
    REPAIRED = auto()
    """To a current replica. The old home's object is damaged: it is no replica any more, and left alone."""


class NewHome(NamedTuple):
    volume: int
    switch: Switch


class TaskChange(Enum):
    """What becomes of the task for a volume."""

    ADD = auto()
    RESTART = auto()
    """It waits as a fresh one, possibly for something else."""
    RAISE = auto()
    """It is for a newer version."""
    REMOVE = auto()


class Change(NamedTuple):
    """`operation` and `version` are those of the task from now on."""

    task: TaskChange
    volume: int
    operation: str
    version: int


@dataclass(frozen=True)
class Decision:
    """What is to be done, in this order."""

    steps: Sequence[tuple[Move, Step]]  # of moves; some only write down why nothing goes on
    homes: Sequence[NewHome]  # one after the other: a home that is repaired may move on at once
    changes: Sequence[Change]  # of tasks; carried out one after the other
    layout: Layout  # where the copies belong after all that
    shortfall: str  # why there is no place for all copies; empty if there is
    held_up: bool  # the home should move, and only somebody who uses the file prevents it
    ask_back: int  # the home whose mount is to say whether the file is still open there; 0: nobody is asked


def abandons(version: int, *, dirty: bool, kept_version: int) -> bool:
    """Whether a file that falls back to a replica of *kept_version* may lose changes, which the home's object alone has."""
    return dirty or kept_version != version


def newest_replica(replicas: Mapping[int, Replica], places: Mapping[int, Place], lost: Collection[int]) -> int:
    """The volume whose replica the file falls back to: the newest that is whole, best on a server that is there; 0 for none."""
    fit = [
        replica
        for volume, replica in replicas.items()
        if volume in places and volume not in lost and replica.committed and not replica.faulty
    ]

    def rank(replica: Replica) -> tuple[int, bool, bool, int]:
        place = places[replica.volume]
        return replica.version, place.counts, place.up, -replica.volume

    best = max(fit, key=rank, default=None)
    return 0 if best is None else best.volume


class Held(Protocol):
    """A replica, as a value of this rule or as a row."""

    @property
    def volume(self) -> int:
        """That has the object."""

    @property
    def version(self) -> int:
        """Of its content."""


def is_settled(file_version: int, home: int, copies: int, sound: Sequence[Held], places: Mapping[int, Place]) -> bool:
    """Whether `align` certainly decides nothing: as many copies as are wanted, all good, each on a server of its own.

    *sound* are all replicas of a file that has none with a fault, no task, no move and no object that is left alone. It is so
    after nearly every copy, and takes a tenth of the time that the decision takes. False says nothing.
    """
    if len(sound) != copies:
        return False
    servers = set()
    for replica in sound:
        place = places.get(replica.volume)
        if place is None or not place.counts or replica.version != file_version:
            return False
        servers.add(place.server)
    return len(servers) == copies and any(replica.volume == home for replica in sound)


def first_copies(file: File, sound: Sequence[Held], places: Mapping[int, Place]) -> Sequence[int] | None:
    """The volumes for which `align` certainly adds copies, and decides nothing else: the home has the only object.

    *sound* as for `is_settled`. It is so after nearly every first commit. None says nothing.
    """
    if len(sound) != 1 or sound[0].volume != file.home or sound[0].version != file.version:
        return None
    return first_places(ino=file.ino, size=file.size, home=file.home, copies=file.copies, places=places)


def align(view: View) -> Decision:
    """What is to become of the file."""
    return _Alignment(view).run()


class _Alignment:
    """One look at the file. Its home, version and replicas change on the way as the decision changes them."""

    def __init__(self, view: View) -> None:
        self._file = view.file  # with the home and version that the decision gives it
        self._use = view.use
        self._lost = view.lost  # volumes that were declared lost
        self._replicas = dict(view.replicas)  # without what is abandoned, and in the versions that are decided
        self._queued = dict(view.queued)  # tasks about which nothing is decided yet
        self._steps: list[tuple[Move, Step]] = []  # of the decision, as the following four
        self._changes: list[Change] = []
        self._homes: list[NewHome] = []
        self._held_up = False
        self._ask_back = 0
        # A deletion that an agent was given is never taken back: its replica is no copy any more.
        self._going = {row.volume for row in view.queued.values() if row.operation == TaskOperation.DELETE and row.given}
        self._places = _places_without(view.places, self._going | set(view.left_alone))
        self._paused = any(move.paused for move in view.moves)  # then nothing that a move made is taken away
        self._moves = self._effective(view.moves)  # those that may go on now
        # A replica on one of these is no copy in the long run.
        self._leaving = self._going | {move.source for move in self._moves}

    def _effective(self, moves: Sequence[Move]) -> list[Move]:
        """The moves that may have an effect on the file's copies now; what keeps the others is written down."""
        effective = []
        for move in moves:
            if move.source in self._going:
                if move.state != MoveState.DELETING:
                    self._steps.append((move, Step(Event.CLEAR)))
            elif move.source not in self._replicas:
                self._steps.append((move, Step(Event.DELETED)))
            elif move.paused:
                self._steps.append((move, Step(Event.COPIES_MISSING)))
            elif (obstacle := look_at_target(move, self._file.size, self._replicas, self._places)) is not None:
                self._steps.append((move, obstacle))
            else:
                effective.append(move)
        return effective

    def run(self) -> Decision:
        home = self._replicas.get(self._file.home)
        if home is not None and home.faulty and not self._file.dirty:
            self._leave_damaged_home()
        layout = self._lay_out()
        place = self._places.get(self._file.home)
        if self._file.home in self._leaving or (place is not None and not place.counts):
            new_home = self._choose_home(layout)
            if new_home:
                self._switch(new_home, Switch.MOVED)
                layout = self._lay_out()
            elif self._file.home in self._lost and self._fall_back():
                layout = self._lay_out()
        self._decide_moves(layout)
        lacking = self._file.copies - len(layout.wanted)
        shortfall = why_short(lacking, self._file.size, layout, self._places) if lacking > 0 else ""
        return Decision(self._steps, self._homes, self._changes, layout, shortfall, self._held_up, self._ask_back)

    def _is_current(self, replica: Replica) -> bool:
        return replica.version == self._file.version and not replica.faulty

    def _lay_out(self) -> Layout:
        holdings = [Holding(replica.volume, self._is_current(replica)) for replica in self._replicas.values()]
        holdings += [
            Holding(row.volume, current=False, stored=False)
            for row in self._queued.values()
            if row.operation == TaskOperation.COPY and row.volume not in self._replicas
        ]
        return lay_out(
            ino=self._file.ino,
            size=self._file.size,
            home=self._file.home,
            copies=self._file.copies,
            holdings=holdings,
            places=self._places,
            leaving=self._leaving,
            pinned={move.target for move in self._moves},
        )

    # ---------------------------------------------------------------------------------------------------- the home

    def _switch(self, volume: int, switch: Switch) -> None:
        self._homes.append(NewHome(volume, switch))
        self._file = self._file._replace(home=volume)

    def _fit_for_home(self) -> list[Replica]:
        """The current replicas on volumes that count, whose objects are known by their stamps."""
        return [
            replica
            for volume, replica in self._replicas.items()
            if self._is_current(replica) and replica.committed and volume in self._places and self._places[volume].counts
        ]

    def _choose_home(self, layout: Layout) -> int:
        """The volume to which the home moves; 0 if it stays for now."""
        if self._file.dirty:
            return 0
        if not self._use.may_move_home:
            self._held_up = True
            return 0
        if self._use.is_open_at(self._file.home):
            # What the kernel reads there cannot be taken back. But the registration may only linger: the mount says so when it
            # is asked for what it caches.
            self._held_up = True
            self._ask_back = self._file.home
            return 0
        fit = {
            replica.volume: self._places[replica.volume]
            for replica in self._fit_for_home()
            # An agent that is still copying would put an older object over the home.
            if replica.volume not in self._leaving and replica.volume not in self._queued
        }
        return choose_home(home=self._file.home, copies=self._file.copies, layout=layout, moves=self._moves, fit=fit)

    def _leave_damaged_home(self) -> None:
        """Goes on with a current replica. Who reads at the home goes on there: it is as damaged whoever is the home."""
        fit = [replica for replica in self._fit_for_home() if not self._is_claimed(replica.volume)]
        if not fit:
            return
        if not self._use.may_move_home:
            self._held_up = True
            return
        best = min(fit, key=lambda found: (not self._places[found.volume].up, found.volume in self._leaving, found.volume))
        self._take_back_task(best.volume)
        damaged = self._file.home
        self._switch(best.volume, Switch.REPAIRED)
        self._leave_alone(damaged)
        self._abandon(damaged)

    def _fall_back(self) -> bool:
        """Whether the file has its home on a server that is not lost now."""
        volume = newest_replica(self._replicas, self._places, {*self._lost, *self._going})
        if not volume:
            return False
        # Nobody is granted to cache what has its home on a lost server, so that whoever does so still will not for long.
        if not self._use.may_move_home or self._use.cached or self._is_claimed(volume):
            self._held_up = True
            return False
        self._take_back_task(volume)
        lost_home, kept = self._file.home, self._replicas[volume]
        self._switch(volume, Switch.FELL_BACK)
        self._leave_alone(lost_home)
        if abandons(self._file.version, dirty=self._file.dirty, kept_version=kept.version):
            self._abandon(lost_home)
            self._begin_version(kept)
        return True

    def _begin_version(self, kept: Replica) -> None:
        """What is kept becomes a version of its own, above all that were committed: no number ever means two contents."""
        version = self._file.version + 1
        self._file = self._file._replace(version=version, dirty=False, size=kept.size)
        for volume, replica in self._replicas.items():
            if replica.version == kept.version and not replica.faulty:
                self._replicas[volume] = replica._replace(version=version)

    def _leave_alone(self, volume: int) -> None:
        self._places = _places_without(self._places, {volume})

    def _abandon(self, volume: int) -> None:
        """The object there is no replica any more: nothing has to be moved away from it, and nobody may delete it."""
        self._replicas.pop(volume, None)
        ended = [move for move in self._moves if move.source == volume]
        self._steps += [(move, Step(Event.DELETED)) for move in ended]
        self._moves = [move for move in self._moves if move not in ended]

    def _is_claimed(self, volume: int) -> bool:
        row = self._queued.get(volume)
        return row is not None and row.state == TaskState.CLAIMED

    def _take_back_task(self, volume: int) -> None:
        """The volume becomes the home: nobody may put another object there."""
        row = self._queued.pop(volume, None)
        if row is not None:
            self._changes.append(Change(TaskChange.REMOVE, volume, row.operation, row.version))

    # ----------------------------------------------------------------------------------------------- moves and tasks

    def _decide_moves(self, layout: Layout) -> None:
        """Decides about each move, and brings the tasks in line with that and with the layout."""
        current = [volume for volume, replica in self._replicas.items() if self._is_current(replica)]
        # A paused move may go on: what it made is not taken away meanwhile.
        may_drop = not self._paused and self._may_delete()
        actions: list[Action] = [action for action in layout.actions if isinstance(action, Copy) or may_drop]
        for move in self._moves:
            step = decide(move, home=self._file.home, copies=self._file.copies, layout=layout, is_current=current)
            if step.event is Event.CLEAR and not self._may_delete():
                step = NOT_COMMITTED
            self._steps.append((move, step))
            if step.event is Event.CLEAR:
                actions.append(Drop(move.source))
        for action in actions:
            self._want(action, self._queued.pop(action.volume, None))
        for volume, row in self._queued.items():
            if volume in self._going:
                if row.state == TaskState.DEAD:
                    self._changes.append(Change(TaskChange.RESTART, volume, TaskOperation.DELETE, row.version))
            elif row.state != TaskState.CLAIMED:
                self._changes.append(Change(TaskChange.REMOVE, volume, row.operation, row.version))

    def _may_delete(self) -> bool:
        """Whether replicas may go. Not while nobody writes and the home's agent has yet to commit what is there: after a backup
        of the catalog was brought back, or a mount died, nobody knows before whether the home has any object.
        """
        return not (self._file.dirty and self._use.may_move_home)

    def _want(self, action: Action, row: Queued | None) -> None:
        """One task that is wanted, and what there is already for its volume."""
        operation = TaskOperation.COPY if isinstance(action, Copy) else TaskOperation.DELETE
        version = self._file.version
        if row is None:
            change = TaskChange.ADD
        elif row.state == TaskState.CLAIMED:
            if not row.operation == TaskOperation.COPY == operation:
                return
            change = TaskChange.RAISE
        elif row.operation != operation or row.state == TaskState.DEAD:
            change = TaskChange.RESTART
        elif row.version != version:
            change = TaskChange.RAISE
        else:
            return
        self._changes.append(Change(change, action.volume, operation, version))


def _places_without(places: Mapping[int, Place], volumes: Collection[int]) -> Mapping[int, Place]:
    """*places*, but what is on *volumes* is no copy, and nothing is put there."""
    if not volumes:
        return places
    closed = {volume: replace(places[volume], counts=False, accepts=False) for volume in volumes if volume in places}
    return {**places, **closed}
