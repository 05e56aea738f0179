"""Rules for a catalog that is made again of what objects say: which object is a file's content, and where it is written. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto

EPOCH_GAP = 1000  # left out where it is not known how often the home has moved since: more often than it can have


@dataclass(frozen=True)
class Held:
    """An object on a volume."""

    volume: int
    home_epoch: int  # as its record says, with the next; both 0 if it has none
    version: int
    has_checksum: bool = False  # its record says what its content's digest is, as those of copies do
    as_recorded: bool = True  # nothing shows that it was written after its record

    @property
    def age(self) -> tuple[int, int]:
        """Grows with each commit, also after the file fell back to an older content."""
        return self.home_epoch, self.version


@dataclass(frozen=True)
class Known:
    """A file in the backup."""

    home_volume: int
    home_epoch: int
    version: int  # 0: it was never committed

    @property
    def age(self) -> tuple[int, int]:
        return self.home_epoch, self.version


class Change(Enum):
    """What a file has to become."""

    NONE = auto()
    """It is as the backup says; what was written since then and not committed its home's agent finds."""
    MOVED = auto()
    """The same content has its home elsewhere."""
    NEWER = auto()
    """It was committed after the backup."""
    OLDER = auto()
    """Its newest content is nowhere, and all volumes were looked at: it falls back to the newest that there is."""
    GONE = auto()
    """No volume has anything of it, and all were looked at."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a file, and which of its objects are replicas of it."""

    change: Change
    home_volume: int = 0
    home_epoch: int = 0
    version: int = 0
    content: int = 0  # the volume with the object whose size, times and record count; 0: none does
    left_out: tuple[int, ...] = ()  # volumes with objects that nobody may take for replicas


def decide(known: Known | None, objects: Sequence[Held], given: Collection[int], *, complete: bool) -> Decision:
    """What becomes of a file. *given*: the volumes that were looked at; *complete*: the catalog knows no others.

    A home on a volume that was not looked at stays where it is: it may have newer content than all that was seen.
    """
    if not objects:
        if known is not None and known.version and complete:
            return Decision(Change.GONE)
        return Decision(Change.NONE)
    home = known.home_volume if known is not None else 0
    newest = max(
        objects, key=lambda held: (held.age, held.volume == home, not held.as_recorded, not held.has_checksum, -held.volume)
    )
    if known is None:
        epoch, version = max(newest.home_epoch, 1), newest.version
        return _with_rest(Decision(Change.NEWER, newest.volume, epoch, version, newest.volume), objects)
    if home not in given:
        if newest.age <= known.age:
            return _with_rest(Decision(Change.NONE, home, known.home_epoch, known.version), objects)
        epoch = max(known.home_epoch, newest.home_epoch)
        return _with_rest(Decision(Change.NEWER, home, epoch, newest.version, newest.volume), objects)
    if newest.age > known.age:
        # Of one epoch only the home has new versions: another volume with a newer one means that the home has lost some.
        lost = newest.home_epoch == known.home_epoch and newest.volume != home
        epoch = newest.home_epoch + EPOCH_GAP if lost else newest.home_epoch
        return _with_rest(Decision(Change.NEWER, newest.volume, epoch, newest.version, newest.volume), objects)
    if any(held.volume == home for held in objects):
        return _with_rest(Decision(Change.NONE, home, known.home_epoch, known.version), objects)
    current = [held for held in objects if held.version == known.version]
    if not current and known.version:
        if not complete:
            return _with_rest(Decision(Change.NONE, home, known.home_epoch, known.version), objects)
        older = Decision(Change.OLDER, newest.volume, known.home_epoch + EPOCH_GAP, newest.version, newest.volume)
        return _with_rest(older, objects)
    chosen = min(current or objects, key=lambda held: held.volume)
    return _with_rest(Decision(Change.MOVED, chosen.volume, known.home_epoch + EPOCH_GAP, known.version, chosen.volume), objects)


def _with_rest(decision: Decision, objects: Sequence[Held]) -> Decision:
    """An object of an earlier epoch may have the number of a version that it is not."""
    rest = tuple(held.volume for held in objects if held.volume != decision.content and held.version > decision.version)
    return Decision(decision.change, decision.home_volume, decision.home_epoch, decision.version, decision.content, rest)
